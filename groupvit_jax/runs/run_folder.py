"""The folder of a run: its configuration, how it was started, how to repeat it."""

import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from groupvit_jax.runs.config_check import differences

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
REPEAT_FILE = "REPEAT.txt"
STARTS_FILE = "starts.jsonl"
# A run can't go on with the parameters of another model. (Another vocabulary is found by content.)
FIXED_FIELDS = ("model.", "data.tokenizer.name", "task", "segmentation.class_names")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def check_writable(workdir: Path, flag: str = "--workdir") -> None:
    """Creates `workdir` and a file in it, and removes the file again.

    Args:
      workdir: the folder.
      flag: that names it.

    Raises:
      ValueError: one of them can't be done.
    """
    probe = workdir / f".probe-{uuid.uuid4().hex}"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"{flag}={workdir}: not writable ({error.strerror}), expected a folder that this "
            "user may create and write to"
        ) from error


def config_from_json(path: Path) -> ConfigDict:
    """Returns the configuration that `write_config` wrote; lists become tuples.

    Raises:
      ValueError: the file holds no configuration.
    """
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: {error}, expected a run's {CONFIG_FILE}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: {type(content).__name__} found, expected a JSON object")
    return ConfigDict({name: _tuples(value) for name, value in content.items()})


def check_same_run(config: ConfigDict, workdir: Path, resuming: bool) -> None:
    """Compares the configuration with the one that the folder's run was last started with.

    Another model or tokenizer is an error where there is a checkpoint to resume from; any other
    difference is logged, and the run goes on with the new value. Fields that came after the run
    began are no difference: without them the model was what their defaults say.

    Raises:
      ValueError: the model or the tokenizer differs.
    """
    path = workdir / CONFIG_FILE
    if not path.exists():
        return
    changed = differences(config_from_json(path), config)
    lines = [f"config.{field}: {old!r} -> {new!r}" for field, (old, new) in changed.items()]
    fixed = [
        line
        for (field, (old, _)), line in zip(changed.items(), lines, strict=True)
        if old is not None and _is_fixed(field)
    ]
    if fixed and resuming:
        raise ValueError(
            f"--workdir={workdir}: holds checkpoints of another model ({'; '.join(fixed)}); use "
            "another --workdir, or --config.init_from to start from its parameters"
        )
    for line in lines:
        logger.warning("the configuration of %s changes: %s", workdir, line)


def write_start(
    config: ConfigDict, workdir: Path, step: int, argv: Sequence[str] | None = None
) -> None:
    """Writes the resolved configuration and how to repeat the run, and records this start.

    Args:
      config: the resolved configuration.
      workdir: the run's folder.
      step: the step that the run starts or goes on from.
      argv: the command, `sys.argv` by default.
    """
    text = json.dumps(config.to_dict(), indent=2)
    _replace(workdir / CONFIG_FILE, text + "\n")
    repeat = f"python -m launch.train --config={workdir / CONFIG_FILE} --workdir=ANOTHER_FOLDER\n"
    _replace(workdir / REPEAT_FILE, repeat)
    start = dict(step=step, argv=list(argv or sys.argv), config=config.to_dict(), **environment())
    with (workdir / STARTS_FILE).open("a") as file:
        file.write(json.dumps(start) + "\n")


def environment() -> dict[str, Any]:
    """Returns versions, devices and the state of the git checkout."""
    device = jax.devices()[0]
    return dict(
        python=platform.python_version(),
        versions={name: version(name) for name in PACKAGES},
        devices=f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        processes=jax.process_count(),
        git=git_state(Path(__file__).parent),
    )


def git_state(directory: Path) -> Mapping[str, Any] | None:
    """Returns commit and whether files differ from it; None outside a git checkout."""
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


def _replace(path: Path, text: str) -> None:
    """Writes the whole file or nothing."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def _is_fixed(field: str) -> bool:
    return field.startswith(FIXED_FIELDS)


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
