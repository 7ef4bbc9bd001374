"""Finding the folders of runs, and reading each as one value."""

import glob
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from groupvit_jax.data.storage.objects import is_remote
from groupvit_jax.runs import sweep_files
from groupvit_jax.runs.bucket.fetching import find_folders, local_runs
from groupvit_jax.runs.config_check import flatten
from groupvit_jax.runs.configuration import config_from_json
from groupvit_jax.runs.layout import CONFIG_FILE, METRICS_FILE
from groupvit_jax.runs.metrics_file import read_metrics
from groupvit_jax.runs.sweep_files import Record, Sweep

FINISHED = "finished"


class Run(NamedTuple):
    """The content of a run's folder.

    Attributes:
      name: the shortest end of the path that no other run has.
      path: the folder.
      config: the configuration's values by dotted path.
      is_configured: whether `config` is complete; a trial that has not begun has overrides only.
      wanted: metric and mode that its sweep compares by, or its checkpoints; "" without.
      state: "finished", "pending", "running", "failed", "stopped" or "unreadable".
      remark: details of the state, "" without any.
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
        """Return the last step with a record, 0 without any."""
        return self.records[-1]["step"] if self.records else 0

    def points(self, metric: str) -> list[tuple[int, float]]:
        """Return steps and values of a metric; NaN where it was not finite."""
        return [
            (record["step"], math.nan if record[metric] is None else float(record[metric]))
            for record in self.records
            if metric in record
        ]


def find_runs(patterns: Sequence[str]) -> list[Path]:
    """Return the folders that patterns match, each once.

    Args:
      patterns: folders of runs, folders of such folders (a sweep's), URLs of both, and globs.

    Raises:
      ValueError: a pattern matches no run.
    """
    found: dict[Path, Path] = {}
    for pattern in patterns:
        if not glob.has_magic(pattern):
            matches = [pattern]
        else:
            matches = find_folders(pattern) if is_remote(pattern) else sorted(glob.glob(pattern))
        matches = [str(local_runs(match)) if is_remote(match) else match for match in matches]
        runs = [run for match in map(Path, matches) for run in _runs_at(match)]
        if not runs:
            what = "no such file or folder" if not any(map(glob.glob, matches)) else "no run found"
            raise ValueError(
                f"{pattern}: {what}, expected the folder of a run (with {CONFIG_FILE} in it), a "
                "folder of such or a glob"
            )
        for run in runs:
            # Resolved: a run and a link to it, as in "the latest", are one run.
            found.setdefault(run.resolve(), run)
    return list(found.values())


def _runs_at(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    if _is_run(path):
        return [path]
    return [child for child in sorted(path.iterdir()) if _is_run(child)]


def _is_run(path: Path) -> bool:
    return (path / CONFIG_FILE).is_file() or sweep_files.is_trial(path)


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read every folder; a run that can't be read has the state "unreadable" and the reason."""
    names = shortest_ends([path.resolve().as_posix() for path in paths], "/")
    return [_read_run(name, path) for name, path in zip(names, paths, strict=True)]


def _read_run(name: str, path: Path) -> Run:
    try:
        record = sweep_files.read_record(path) if sweep_files.is_trial(path) else None
        config = _read_config(path / CONFIG_FILE)
        wanted = _wanted(sweep_files.read_sweep(path.resolve().parent), config)
        metrics = read_metrics(path)
    except ValueError as error:
        # One damaged run must not keep the others from being compared.
        return Run(name, path, {}, False, ("", ""), "unreadable", str(error), [])
    state, remark = _state(record, config, metrics[-1]["step"] if metrics else None)
    # A trial that has not begun has no configuration yet, only what will be overridden.
    known = config or (record.overrides if record else {})
    return Run(name, path, known, bool(config), wanted, state, remark, metrics)


def _read_config(path: Path) -> dict[str, Any]:
    return flatten(config_from_json(path).to_dict(), free=()) if path.is_file() else {}


def _wanted(sweep: Sweep | None, config: Mapping[str, Any]) -> tuple[str, str]:
    if sweep and sweep.metric:
        return sweep.metric, sweep.mode
    best = config.get("checkpoint.best_metric") or ""
    return best, str(config.get("checkpoint.best_mode", "max")) if best else ""


def _state(
    record: Record | None, config: Mapping[str, Any], last_step: int | None
) -> tuple[str, str]:
    """Return state and remark: a sweep has recorded the state, else the number of steps tells."""
    num_steps = config.get("train.num_steps")
    reached = "" if last_step is None else f"step {last_step}"
    if reached and num_steps:
        reached += f" of {num_steps}"
    if record:
        if record.state == FINISHED:
            return FINISHED, ""
        ended = f"exit status {record.exit_status}" if record.exit_status else ""
        return record.state, ", ".join(filter(None, [ended, reached]))
    if last_step is None:
        return "pending", f"no {METRICS_FILE}"
    if num_steps and last_step < num_steps:
        return "stopped", reached
    return FINISHED, "" if num_steps else "as far as can be told: train.num_steps is not set"


def shortest_ends(names: Sequence[str], separator: str) -> list[str]:
    """Shorten each name to as many of its last parts as tell it from the others.

    Args:
      names: all different.
      separator: between the parts.
    """
    return [_shortest_end(name, names, separator) for name in names]


def _shortest_end(name: str, names: Sequence[str], separator: str) -> str:
    parts = name.split(separator)
    for count in range(1, len(parts)):
        end = separator.join(parts[-count:])
        # Whole parts only: "first" is no end of "very-first".
        if not any(n != name and f"{separator}{n}".endswith(separator + end) for n in names):
            return end
    return name
