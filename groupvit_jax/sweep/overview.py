"""A sweep as a table: the settings that differ between trials, their state and their metrics."""

import collections
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from groupvit_jax.runs.layout import METRICS_FILE
from groupvit_jax.runs.metrics_file import read_metrics
from groupvit_jax.runs.sweep_files import Sweep, read_record
from groupvit_jax.sweep.trials import short_names

Row = dict[str, Any]


def rows(sweep: Sweep, root: Path) -> list[Row]:
    """Return one row for each trial, all with the same columns.

    The columns are "trial", the settings that differ between trials by their short names, "state",
    "step" and "loss" of the last line of metrics, and the best value of the sweep's metric. A
    missing value is None, and so is a setting that a trial doesn't override.

    Args:
      sweep: the sweep.
      root: its folder.
    """
    fields = differing(trial.overrides for trial in sweep.trials)
    names = short_names(fields)
    found = []
    for trial in sweep.trials:
        workdir = root / trial.folder
        metrics = _metrics(workdir)
        row = {"trial": trial.id} | {names[f]: trial.overrides.get(f) for f in fields}
        row["state"] = read_record(workdir).state
        row["step"] = metrics[-1]["step"] if metrics else None
        row["loss"] = metrics[-1].get("loss") if metrics else None
        if sweep.metric:
            row[sweep.metric] = best([line.get(sweep.metric) for line in metrics], sweep.mode)
        found.append(row)
    return found


def differing(settings: Iterable[dict[str, Any]]) -> list[str]:
    """Return the fields whose value differs or that some lack, in order of appearance."""
    every = list(settings)
    fields = list(dict.fromkeys(field for overrides in every for field in overrides))
    return [
        field
        for field in fields
        if any(
            field not in overrides or overrides[field] != every[0].get(field) for overrides in every
        )
    ]


def best(values: Sequence[float | None], mode: str) -> float | None:
    """Return the largest value (mode "max") or the smallest ("min"); None without one."""
    known = [value for value in values if value is not None]
    return (max if mode == "max" else min)(known) if known else None


def render(found: Sequence[Row], title: str = "") -> Table:
    """Return the rows as a table of rich."""
    table = Table(title=title or None, box=box.SIMPLE_HEAD, pad_edge=False)
    for name in found[0] if found else ():
        is_number = all(isinstance(row[name], int | float | None) for row in found)
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for row in found:
        table.add_row(*map(_cell, row.values()), style=_STYLES.get(row["state"]))
    return table


def summary(found: Sequence[Row]) -> str:
    """Return the number of trials in each state, on one line."""
    counts = collections.Counter(row["state"] for row in found)
    parts = [f"{counts[state]} {state}" for state in _STATES if counts[state]]
    return f"{len(found)} trials: {', '.join(parts)}"


_STATES = ("finished", "running", "pending", "failed")
_STYLES = {"failed": "red", "finished": "green", "pending": "dim"}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _metrics(workdir: Path) -> list[dict[str, Any]]:
    path = workdir / METRICS_FILE
    if not path.exists():
        return []
    status = path.stat()
    return _read(workdir, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=1024)
def _read(workdir: Path, modified: int, size: int) -> list[dict[str, Any]]:
    """Read a metrics file again only if it has changed.

    The table is drawn anew every second, and the files of long trials have thousands of lines.
    """
    del modified, size
    return read_metrics(workdir)
