"""The metrics file of a run: one JSON object a line, `{"step": 120, "loss": 3.1, ...}`."""

import contextlib
import errno
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from groupvit_jax.runs.files import replace_bytes
from groupvit_jax.runs.layout import METRICS_FILE
from groupvit_jax.runs.workdir import WorkdirError

logger = logging.getLogger(__name__)


class MetricsFile:
    """Appends one line a step; each is on the disk when `write` returns, whole or not at all.

    A killed run leaves at most one torn line, the last. A resumed run continues the file: lines
    beyond the step that it resumes from are dropped, because they will be written again.
    """

    def __init__(self, workdir: Path, resume_step: int) -> None:
        """Open the file, repair it and drop the lines beyond `resume_step`."""
        self._path = workdir / METRICS_FILE
        if self._path.exists():
            repair(workdir, resume_step)
        # Unbuffered: a line in Python's buffer would be lost with the process.
        self._file = self._path.open("ab", buffering=0)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line; NaN and infinity become null, because JSON has neither.

        Raises:
          WorkdirError: the disk is full or gone, or the file was removed. The file ends with the
            line before.
        """
        values = {
            name: float(value) if math.isfinite(value) else None for name, value in metrics.items()
        }
        line = _line({"step": step, **values}).encode()
        size = os.fstat(self._file.fileno()).st_size
        try:
            # A disk that fills up takes the beginning of a line without an error.
            while line:
                line = line[self._file.write(line) :]
            # A few milliseconds a line, against losing metrics that no checkpoint can give again.
            os.fsync(self._file.fileno())
            # Else written to a file that nobody will ever find.
            if not self._path.exists():
                raise FileNotFoundError(errno.ENOENT, "removed during the run")
        except OSError as error:
            with contextlib.suppress(OSError):  # of a disk that is gone
                os.ftruncate(self._file.fileno(), size)
            raise WorkdirError(self._path, f"the metrics of step {step}", error) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics file, without one torn by a kill; [] without the file.

    Raises:
      ValueError: a line is no JSON object with a step.
    """
    path = workdir / METRICS_FILE
    return [_parsed(line, place) for place, line in _lines(path)] if path.is_file() else []


def all_records(workdir: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics file that can be read, also those that `repair` drops."""
    path, found = workdir / METRICS_FILE, []
    for line in path.read_bytes().split(b"\n")[:-1] if path.is_file() else []:
        # Named by `repair`.
        with contextlib.suppress(ValueError):
            found.append(_parsed(line, str(path)))
    return found


def repair(workdir: Path, last_step: int) -> None:
    """Keep of a run's metrics file one whole line of each step up to the last, and log what goes.

    Lines of later steps go without a word: the run that resumes writes them again.
    """
    path, kept = workdir / METRICS_FILE, {}
    for place, line in _lines(path):
        try:
            record = _parsed(line, place)
        except ValueError as error:
            logger.warning("removed: %s", error)
            continue
        if record["step"] in kept:
            logger.warning("removed: %s: a second line of step %d", place, record["step"])
        elif record["step"] <= last_step:
            kept[record["step"]] = line + b"\n"
    replace_bytes(path, b"".join(kept.values()))


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield place and content of the complete lines; the one that a kill has torn is logged."""
    *complete, torn = path.read_bytes().split(b"\n")
    if torn:
        logger.warning("%s: the last line is torn (%d bytes) and is left out", path, len(torn))
    for number, line in enumerate(complete, 1):
        yield f"{path}:{number}", line


def _parsed(line: bytes, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: {error}, expected a JSON object on each line") from error
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise ValueError(f"{place}: {str(record)[:80]} found, expected an object with its step")
    return record


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"
