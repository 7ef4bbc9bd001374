"""The folder of a sweep: which trials there are, and how far each one is.

`SWEEP/sweep.json` lists the trials, `SWEEP/NNN-settings/` is the workdir of each, with two files
more than another run has: `trial.json`, the trial's state, and `log.txt`, what it said.
"""

import dataclasses
import datetime
import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ml_collections import ConfigDict

from groupvit_jax.sweep.space import Overrides

SWEEP_FILE = "sweep.json"
TRIAL_FILE = "trial.json"
LOG_FILE = "log.txt"
NAME_LENGTH = 60
# What the line in the log begins with that each attempt begins with.
ATTEMPT = "--- attempt "

State = Literal["pending", "running", "finished", "failed"]


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
      id: its number, from 0.
      folder: the name of its workdir in the sweep's folder.
      overrides: the settings that make it; lists stand for tuples.
      config_sha256: of the whole configuration.
    """

    id: int
    folder: str
    overrides: Overrides
    config_sha256: str


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What `sweep.json` holds.

    Attributes:
      name: of the sweep.
      config: file of the base configuration.
      arguments: flags of `launch.train` that all trials share, such as `--config.FIELD=VALUE`.
      metric: EVALUATOR/METRIC that trials are compared by; may be empty.
      mode: "max" or "min", which of its values is the best.
      trials: in order.
    """

    name: str
    config: str
    arguments: tuple[str, ...]
    metric: str
    mode: str
    trials: tuple[Trial, ...]


@dataclasses.dataclass(frozen=True)
class Record:
    """What `trial.json` holds.

    Attributes:
      id: the trial's number.
      overrides: the settings that make it.
      command: what runs it, as a list of arguments.
      state: how far it is; "running" is also left by a machine that died.
      exit_status: of the last attempt that ended, the negative number of a signal; None before.
      attempts: how often it was started.
      failures: how many of the attempts failed.
      started: time of the last start, in UTC.
      ended: time of the last end, in UTC.
    """

    id: int
    overrides: Overrides
    command: tuple[str, ...]
    state: State = "pending"
    exit_status: int | None = None
    attempts: int = 0
    failures: int = 0
    started: str | None = None
    ended: str | None = None


def make_trial(number: int, overrides: Mapping[str, Any], config: ConfigDict) -> Trial:
    """Returns a trial.

    Args:
      number: of the trial, from 0.
      overrides: the settings that make it.
      config: the whole configuration, with them.
    """
    text = json.dumps(config.to_dict(), sort_keys=True, default=repr)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Trial(number, folder_name(number, overrides), plain(overrides), digest)


def folder_name(number: int, overrides: Mapping[str, Any]) -> str:
    """Returns the name of a trial's folder: its number and what the file system takes of it."""
    settings = re.sub(r"[^A-Za-z0-9._=-]+", "_", describe(overrides))
    return f"{number:03d}-{settings}"[:NAME_LENGTH].rstrip("-_.=")


def describe(overrides: Mapping[str, Any]) -> str:
    """Returns the settings on one line, fields by the last part of their names."""
    names = short_names(overrides)
    return "-".join(f"{names[field]}={value}" for field, value in overrides.items()) or "base"


def short_names(fields: Sequence[str] | Mapping[str, Any]) -> dict[str, str]:
    """Returns the last part of each dotted name, or all of it where two would be the same."""
    last = [field.rpartition(".")[2] for field in fields]
    return {
        field: name if last.count(name) == 1 else field
        for field, name in zip(fields, last, strict=True)
    }


def plain(value: Any) -> Any:
    """Returns a value as JSON gives it back: tuples as lists, NumPy's numbers as Python's."""
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.item() if hasattr(value, "item") else value


def flag_of(field: str, value: Any) -> str:
    """Returns the flag of `launch.train` that sets a field."""
    return f"--config.{field}={_as_tuples(plain(value))}"


def command_of(sweep: Sweep, trial: Trial, folder: Path, more: Sequence[str] = ()) -> list[str]:
    """Returns the command that runs a trial, to be run where the sweep was started.

    Args:
      sweep: the sweep.
      trial: one of its trials.
      folder: of the sweep.
      more: flags of this start only, such as those by which processes find each other.
    """
    settings = [flag_of(field, value) for field, value in trial.overrides.items()]
    workdir = f"--workdir={folder / trial.folder}"
    config = f"--config={sweep.config}"
    return [sys.executable, "-m", "launch.train", config, *sweep.arguments, *settings, workdir,
            *more]  # fmt: skip


def write_sweep(folder: Path, sweep: Sweep) -> None:
    """Writes `sweep.json`, and `trial.json` of the trials that have none."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SWEEP_FILE, dataclasses.asdict(sweep))
    for trial in sweep.trials:
        workdir = folder / trial.folder
        workdir.mkdir(exist_ok=True)
        if not (workdir / TRIAL_FILE).exists():
            command = tuple(command_of(sweep, trial, folder))
            write_record(workdir, Record(trial.id, trial.overrides, command))


def read_sweep(folder: Path) -> Sweep | None:
    """Returns the sweep of a folder, None if it holds none.

    Raises:
      ValueError: its `sweep.json` can't be read.
    """
    path = folder / SWEEP_FILE
    if not path.exists():
        return None
    content = _read_json(path)
    try:
        trials = tuple(Trial(**trial) for trial in content.pop("trials"))
        content["arguments"] = tuple(content["arguments"])
        return Sweep(trials=trials, **content)
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path}: {error}, expected what launch.sweep wrote") from error


def check_same_sweep(folder: Path, old: Sweep, new: Sweep) -> None:
    """Raises ValueError if trials of `old` have changed; trials may be added at the end."""
    for i, before in enumerate(old.trials):
        after = new.trials[i] if i < len(new.trials) else None
        if after == before:
            continue
        if after is None:
            found = "not there any more"
        elif after.overrides == before.overrides:
            found = "the same with other values in its base configuration"
        else:
            found = describe(after.overrides)
        raise ValueError(
            f"{folder / SWEEP_FILE}: trial {before.id} was {describe(before.overrides)} and is now "
            f"{found}, expected the same trials (more may follow) or another --output"
        )


def read_record(workdir: Path) -> Record:
    """Returns the state of a trial.

    Raises:
      ValueError: its `trial.json` can't be read.
    """
    path = workdir / TRIAL_FILE
    try:
        content = _read_json(path)
        return Record(**{**content, "command": tuple(content["command"])})
    except (TypeError, KeyError, FileNotFoundError) as error:
        raise ValueError(f"{path}: {error}, expected what launch.sweep wrote") from error


def write_record(workdir: Path, record: Record) -> None:
    """Writes the state of a trial, all of it or nothing."""
    write_json(workdir / TRIAL_FILE, dataclasses.asdict(record))


def write_json(path: Path, content: Any) -> None:
    """Writes the whole file or nothing, also where several processes write it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(beside, path)


def log_tail(workdir: Path, lines: int = 8) -> list[str]:
    """Returns the last lines of what a trial's last attempt said, its error as the very last."""
    path = workdir / LOG_FILE
    said = path.read_text(errors="replace").splitlines() if path.exists() else []
    begun = max((i for i, line in enumerate(said) if line.startswith(ATTEMPT)), default=-1)
    said = said[begun + 1 :]
    # Threads that read ahead may say more while the process ends.
    error = [line for line in said if line.startswith("error: ")][-1:]
    return [line for line in said[-lines:] if line not in error] + error


def now() -> str:
    """Returns the time in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: {error}, expected what launch.sweep wrote") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: {type(content).__name__} found, expected a JSON object")
    return content


def _as_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_tuples(item) for name, item in value.items()}
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value
