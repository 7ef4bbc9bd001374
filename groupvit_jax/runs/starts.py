"""How a run was started, and how to repeat it."""

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from groupvit_jax.runs.configuration import write_config
from groupvit_jax.runs.files import replace_text
from groupvit_jax.runs.layout import CONFIG_FILE, REPEAT_FILE, STARTS_FILE

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def write_start(
    config: Mapping[str, Any],
    workdir: Path,
    step: int,
    argv: Sequence[str] | None = None,
    name: str = "",
) -> None:
    """Write the resolved configuration and how to repeat the run, and record this start.

    Args:
      config: the resolved configuration, as nested mappings.
      workdir: the run's folder.
      step: the step that the run starts or resumes from.
      argv: the command, `sys.argv` by default.
      name: of the workdir for users, where it is not the folder.
    """
    write_config(config, workdir)
    recorded = f"{name.rstrip('/') or workdir}/{CONFIG_FILE}"
    repeat = f"python -m launch.train --config={recorded} --workdir=ANOTHER_FOLDER\n"
    replace_text(workdir / REPEAT_FILE, repeat)
    start = dict(step=step, argv=list(argv or sys.argv), config=config, **environment())
    # Appended, unlike the files above: earlier starts explain earlier parts of the curves.
    with (workdir / STARTS_FILE).open("a") as file:
        file.write(json.dumps(start) + "\n")


def environment() -> dict[str, Any]:
    """Return versions, devices and the state of the git checkout."""
    device = jax.devices()[0]
    return dict(
        python=platform.python_version(),
        versions={name: version(name) for name in PACKAGES},
        devices=f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        processes=jax.process_count(),
        git=git_state(Path(__file__).parent),
    )


def git_state(directory: Path) -> Mapping[str, Any] | None:
    """Return the commit and whether files differ from it; None outside a git checkout."""
    if shutil.which("git") is None:
        return None
    commit = _git(directory, "rev-parse", "HEAD")
    status = _git(directory, "status", "--porcelain")
    return None if commit is None else dict(commit=commit, modified=bool(status))


def _git(directory: Path, *arguments: str) -> str | None:
    result = subprocess.run(
        ["git", "-C", str(directory), *arguments], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() if result.returncode == 0 else None
