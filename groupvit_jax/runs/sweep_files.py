"""Files of a sweep: `sweep.json`, its trials, and a `trial.json` in the workdir of each."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from groupvit_jax.runs.files import read_json, write_json
from groupvit_jax.runs.layout import SWEEP_FILE, TRIAL_FILE

_EXPECTED = "what launch.sweep wrote"

State = Literal["pending", "running", "finished", "failed"]


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
      id: its number, from 0.
      folder: the name of its workdir in the sweep's folder.
      overrides: its settings by dotted field; lists stand for tuples.
      config_sha256: hash of the whole configuration.
    """

    id: int
    folder: str
    overrides: dict[str, Any]
    config_sha256: str


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The content of `sweep.json`.

    Attributes:
      name: name of the sweep.
      config: file of the base configuration.
      arguments: flags of `launch.train` shared by all trials, such as `--config.FIELD=VALUE`.
      metric: EVALUATOR/METRIC that trials are compared by; may be empty.
      mode: "max" or "min", which of its values is the best.
      trials: the trials, in order.
    """

    name: str
    config: str
    arguments: tuple[str, ...]
    metric: str
    mode: str
    trials: tuple[Trial, ...]


@dataclasses.dataclass(frozen=True)
class Record:
    """The content of `trial.json`: how far a trial is.

    Attributes:
      id: the trial's number.
      overrides: the trial's settings.
      command: the command that runs it, as a list of arguments.
      state: how far it is; a machine that died leaves "running" too.
      exit_status: of the last attempt that ended, the negative number of a signal; None before.
      attempts: how often it was started.
      failures: how many of the attempts failed.
      started: time of the last start, in UTC.
      ended: time of the last end, in UTC.
    """

    id: int
    overrides: dict[str, Any]
    command: tuple[str, ...]
    state: State = "pending"
    exit_status: int | None = None
    attempts: int = 0
    failures: int = 0
    started: str | None = None
    ended: str | None = None


def write_sweep(folder: Path, sweep: Sweep) -> None:
    """Write the `sweep.json` of a sweep's folder."""
    write_json(folder / SWEEP_FILE, dataclasses.asdict(sweep))


def read_sweep(folder: Path) -> Sweep | None:
    """Return the sweep of a folder, None if it holds none.

    Raises:
      ValueError: its `sweep.json` can't be read.
    """
    path = folder / SWEEP_FILE
    if not path.exists():
        return None
    content = read_json(path, _EXPECTED)
    try:
        trials = tuple(Trial(**trial) for trial in content.pop("trials"))
        content["arguments"] = tuple(content["arguments"])
        return Sweep(trials=trials, **content)
    except (TypeError, KeyError) as error:
        raise _unexpected(path, error) from error


def is_trial(workdir: Path) -> bool:
    """Return whether a workdir is that of a trial."""
    return (workdir / TRIAL_FILE).is_file()


def write_record(workdir: Path, record: Record) -> None:
    """Write the `trial.json` of a workdir, the whole file or nothing."""
    write_json(workdir / TRIAL_FILE, dataclasses.asdict(record))


def read_record(workdir: Path) -> Record:
    """Return the state of a trial.

    Raises:
      FileNotFoundError: the workdir is not that of a trial.
      ValueError: its `trial.json` can't be read.
    """
    path = workdir / TRIAL_FILE
    content = read_json(path, _EXPECTED)
    try:
        return Record(**{**content, "command": tuple(content["command"])})
    except (TypeError, KeyError) as error:
        raise _unexpected(path, error) from error


def _unexpected(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: {error}, expected {_EXPECTED}")
