"""What a run's folder holds, and what an exit code means, is known in `groupvit_jax/runs` alone."""

import ast
from pathlib import Path

from groupvit_jax.runs import checkpoints, exit_codes, layout

NAMES = {value for name, value in vars(layout).items() if name.isupper()}
NAMES.add(checkpoints.DATA_POSITION)
NAMES.remove(layout.CONFIG_FILE)  # exports and Hugging Face's directories have one too
CODES = {exit_codes.LOST, exit_codes.STOPPED}


def constants(folder):
    """Places and values of all strings and numbers in Python files outside runs/."""
    for path in sorted(Path(folder).rglob("*.py")):
        if path.parts[:2] != ("groupvit_jax", "runs"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str | int):
                    yield f"{path}:{node.lineno}", node.value


def test_no_other_package_spells_out_a_name_in_a_runs_folder():
    found = [(p, v) for f in ("groupvit_jax", "launch", "configs") for p, v in constants(f)]
    assert len(found) > 1000
    assert [(place, value) for place, value in found if value in NAMES] == []


def test_no_other_package_spells_out_an_exit_code():
    found = [(p, v) for f in ("groupvit_jax/sweep", "launch") for p, v in constants(f)]
    assert [(place, value) for place, value in found if value in CODES] == []


def test_all_names_in_a_folder_differ():
    names = [value for name, value in vars(layout).items() if name.isupper()]
    assert len(set(names)) == len(names)
