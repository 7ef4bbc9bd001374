"""Trials of a sweep: settings, folder names, and the commands that run them."""

import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from groupvit_jax.runs.configuration import lists_as_tuples
from groupvit_jax.runs.sweep_files import Sweep, Trial

# File systems allow 255 bytes; a path of several such names, with a step's files below, gets too
# long for tools long before.
NAME_LENGTH = 60


def make_trial(number: int, overrides: Mapping[str, Any], config: Mapping[str, Any]) -> Trial:
    """Return a trial.

    Args:
      number: number of the trial, from 0.
      overrides: its settings by dotted field.
      config: the whole configuration, overrides included. Its hash tells whether the base
        configuration changes between two starts of a sweep.
    """
    text = json.dumps(config, sort_keys=True, default=repr)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Trial(number, folder_name(number, overrides), plain(overrides), digest)


def folder_name(number: int, overrides: Mapping[str, Any]) -> str:
    """Return the name of a trial's folder: its number and its settings, safe for a file system."""
    settings = re.sub(r"[^A-Za-z0-9._=-]+", "_", override_label(overrides))
    return f"{number:03d}-{settings}"[:NAME_LENGTH].rstrip("-_.=")


def override_label(overrides: Mapping[str, Any]) -> str:
    """Return the settings on one line, each field by its short name."""
    names = short_names(overrides)
    return "-".join(f"{names[field]}={value}" for field, value in overrides.items()) or "base"


def short_names(fields: Sequence[str] | Mapping[str, Any]) -> dict[str, str]:
    """Return the last part of each dotted name, or all of it where two would be the same."""
    last = [field.rpartition(".")[2] for field in fields]
    return {
        field: name if last.count(name) == 1 else field
        for field, name in zip(fields, last, strict=True)
    }


def plain(value: Any) -> Any:
    """Return a value as JSON gives it back: tuples as lists, NumPy scalars as Python's."""
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.item() if hasattr(value, "item") else value


def flag_of(field: str, value: Any) -> str:
    """Return the flag of `launch.train` that sets a field."""
    return f"--config.{field}={lists_as_tuples(plain(value))}"


def command_of(
    sweep: Sweep, trial: Trial, folder: Path | str, more: Sequence[str] = ()
) -> list[str]:
    """Return the command that runs a trial, for the directory where the sweep was started.

    Args:
      sweep: the sweep.
      trial: one of its trials.
      folder: the sweep's folder, or its URL.
      more: flags of this start only, such as those by which processes find each other.
    """
    settings = [flag_of(field, value) for field, value in trial.overrides.items()]
    workdir = f"--workdir={folder}/{trial.folder}"
    config = f"--config={sweep.config}"
    return [sys.executable, "-m", "launch.train", config, *sweep.arguments, *settings, workdir,
            *more]  # fmt: skip
