"""Finds the folders of runs and reads what they recorded."""

import glob
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from groupvit_jax.runs.config_check import flatten
from groupvit_jax.runs.run_folder import CONFIG_FILE, config_from_json
from groupvit_jax.train.writers import METRICS_FILE, read_metrics

TRIAL_FILE, SWEEP_FILE = "trial.json", "sweep.json"
FINISHED = "finished"


class Run(NamedTuple):
    """What one folder holds.

    Attributes:
      name: the shortest end of the path that no other run has.
      path: the folder.
      config: the configuration's values by dotted path.
      is_configured: whether `config` is whole; of a run that has not begun it is what a sweep will
        override.
      wanted: metric and mode that its sweep compares by, or its checkpoints; "" without.
      state: "finished"; else "pending", "running", "failed" or "stopped", as it stands.
      remark: what else is to be known of the state, "" if nothing.
      records: the lines of its metrics, each with its `step`.
    """

    name: str
    path: Path
    config: Mapping[str, Any]
    is_configured: bool
    wanted: tuple[str, str]
    state: str
    remark: str
    records: Sequence[Mapping[str, Any]]

    @property
    def last_step(self) -> int:
        """The last step with a record, 0 without any."""
        return self.records[-1]["step"] if self.records else 0

    def points(self, metric: str) -> list[tuple[int, float]]:
        """Returns steps and values of a metric; NaN where it was not finite."""
        return [
            (record["step"], math.nan if record[metric] is None else float(record[metric]))
            for record in self.records
            if metric in record
        ]


def find_runs(patterns: Sequence[str]) -> list[Path]:
    """Returns the folders that patterns stand for, each once.

    Args:
      patterns: runs' folders, folders that hold such (a sweep), and globs of both.

    Raises:
      ValueError: a pattern stands for no run.
    """
    found: dict[Path, Path] = {}
    for pattern in patterns:
        matches = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
        runs = [run for match in map(Path, matches) for run in _runs_at(match)]
        if not runs:
            what = "no such file or folder" if not any(map(glob.glob, matches)) else "no run found"
            raise ValueError(
                f"{pattern}: {what}, expected the folder of a run (with {CONFIG_FILE} in it), a "
                "folder of such or a glob"
            )
        for run in runs:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def _runs_at(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    if _is_run(path):
        return [path]
    return [child for child in sorted(path.iterdir()) if _is_run(child)]


def _is_run(path: Path) -> bool:
    return (path / CONFIG_FILE).is_file() or (path / TRIAL_FILE).is_file()


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Reads every folder; what is unreadable is said in the run's remark.

    Args:
      paths: the folders.
    """
    names = shortest_ends([path.resolve().as_posix() for path in paths], "/")
    return [_read_run(name, path) for name, path in zip(names, paths, strict=True)]


def _read_run(name: str, path: Path) -> Run:
    try:
        trial = _read_object(path / TRIAL_FILE)
        config = _read_config(path / CONFIG_FILE)
        wanted = _wanted(_read_object(path.resolve().parent / SWEEP_FILE), config)
        records = _read_records(path / METRICS_FILE)
    except ValueError as error:
        return Run(name, path, {}, False, ("", ""), "unreadable", str(error), [])
    state, remark = _state(trial, config, records[-1]["step"] if records else None)
    known = config or _overrides(trial)
    return Run(name, path, known, bool(config), wanted, state, remark, records)


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}, expected JSON") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: {type(content).__name__} found, expected a JSON object")
    return content


def _read_config(path: Path) -> dict[str, Any]:
    return flatten(config_from_json(path), free=()) if path.is_file() else {}


def _wanted(sweep: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[str, str]:
    if metric := sweep.get("metric"):
        return str(metric), str(sweep.get("mode", "max"))
    best = config.get("checkpoint.best_metric") or ""
    return best, str(config.get("checkpoint.best_mode", "max")) if best else ""


def _overrides(trial: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a sweep will set, by dotted path."""
    overrides = trial.get("overrides")
    return dict(overrides) if isinstance(overrides, dict) else {}


def _read_records(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        records = read_metrics(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}, expected a JSON object on each line") from error
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise ValueError(f"{path}:{number}: {record!r} found, expected an object with its step")
    return records


def _state(
    trial: Mapping[str, Any], config: Mapping[str, Any], last_step: int | None
) -> tuple[str, str]:
    """Returns state and remark; without a sweep's word the number of steps tells."""
    num_steps = config.get("train.num_steps")
    reached = "" if last_step is None else f"step {last_step}"
    if reached and num_steps:
        reached += f" of {num_steps}"
    if state := trial.get("state"):
        status = trial.get("exit_status")
        ended = f"exit status {status}" if status and state != FINISHED else ""
        parts = [ended] if state == FINISHED else [ended, reached]
        return str(state), ", ".join(filter(None, parts))
    if last_step is None:
        return "pending", f"no {METRICS_FILE}"
    if num_steps and last_step < num_steps:
        return "stopped", reached
    return FINISHED, "" if num_steps else "as far as can be told: train.num_steps is not set"


def shortest_ends(names: Sequence[str], separator: str) -> list[str]:
    """Returns of each name as many of its last parts as tell it from the others.

    Args:
      names: all different.
      separator: between the parts.
    """
    return [_shortest_end(name, names, separator) for name in names]


def _shortest_end(name: str, names: Sequence[str], separator: str) -> str:
    parts = name.split(separator)
    for count in range(1, len(parts)):
        end = separator.join(parts[-count:])
        if not any(n != name and f"{separator}{n}".endswith(separator + end) for n in names):
            return end
    return name
