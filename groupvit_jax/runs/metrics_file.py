"""The metrics file of a run: one JSON object a line, `{"step": 120, "loss": 3.1, ...}`."""

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from groupvit_jax.runs.files import replace_text
from groupvit_jax.runs.layout import METRICS_FILE

logger = logging.getLogger(__name__)


class MetricsFile:
    """Appends one line a step; each is on the disk when `write` returns.

    A killed run leaves at most one torn line, the last. A resumed run continues the file: lines
    beyond the step that it resumes from are dropped, because they will be written again.
    """

    def __init__(self, workdir: Path, resume_step: int) -> None:
        """Open the file and drop the lines beyond `resume_step`."""
        path = workdir / METRICS_FILE
        if path.exists():
            drop_lines_after(workdir, resume_step)
        # Unbuffered: a line in Python's buffer would be lost with the process.
        self._file = path.open("ab", buffering=0)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line; NaN and infinity become null, because JSON has neither."""
        values = {
            name: float(value) if math.isfinite(value) else None for name, value in metrics.items()
        }
        self._file.write(_line({"step": step, **values}).encode())
        # A few milliseconds a line, against losing metrics that no checkpoint can give again.
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics file, without one torn by a kill; [] without the file.

    Raises:
      ValueError: a line is no JSON object with a step.
    """
    path = workdir / METRICS_FILE
    if not path.is_file():
        return []
    *complete, torn = path.read_bytes().split(b"\n")
    if torn:
        logger.warning("%s: the last line is torn (%d bytes) and is left out", path, len(torn))
    return [_parsed(line, f"{path}:{number}") for number, line in enumerate(complete, 1)]


def drop_lines_after(workdir: Path, step: int) -> None:
    """Rewrite a run's metrics file without lines of later steps and without a torn last line."""
    kept = [line for line in read_metrics(workdir) if line["step"] <= step]
    replace_text(workdir / METRICS_FILE, "".join(map(_line, kept)))


def _parsed(line: bytes, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place}: {error}, expected a JSON object on each line") from error
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise ValueError(f"{place}: {record!r} found, expected an object with its step")
    return record


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"
