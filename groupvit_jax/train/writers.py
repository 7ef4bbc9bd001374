"""Where metrics go: always `metrics.jsonl`; TensorBoard and Weights & Biases where wanted."""

import importlib.util
import json
import logging
import math
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ml_collections import ConfigDict

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


@runtime_checkable
class MetricWriter(Protocol):
    """Takes the metrics of a step; a step is written once."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of `step`."""

    def close(self) -> None:
        """Writes what is buffered and releases the files."""


class JsonlWriter:
    """One JSON object per line and step, on the disk when `write` returns.

    A killed run leaves at most one torn line, the last; a resumed run continues the file. Lines
    beyond the step it resumes from are dropped, for they will be written again.
    """

    def __init__(self, path: Path, resume_step: int) -> None:
        """Opens the file and drops what lies beyond `resume_step`."""
        if path.exists():
            drop_lines_after(path, resume_step)
        self._file = path.open("ab", buffering=0)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one line."""
        values = {name: _finite(value) for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **values}).encode() + b"\n")
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None  # JSON has no NaN


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a `metrics.jsonl`, without one torn by a kill."""
    lines = path.read_bytes().split(b"\n")
    complete, torn = lines[:-1], lines[-1]
    if torn:
        logger.warning("%s: the last line is torn (%d bytes) and is left out", path, len(torn))
    return [json.loads(line) for line in complete]


def drop_lines_after(path: Path, step: int) -> None:
    """Rewrites `path` without the lines of later steps and without a torn last line."""
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    rewritten = path.with_suffix(".tmp")
    rewritten.write_text("".join(json.dumps(line) + "\n" for line in kept))
    os.replace(rewritten, path)


class CluWriter:
    """clu's writers: a log line per step (with --verbosity=0) and TensorBoard event files."""

    def __init__(self, directory: Path) -> None:
        """Opens the event file; imports TensorFlow."""
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        import tensorflow as tf
        from clu import metric_writers

        tf.config.set_visible_devices([], "GPU")  # the accelerators are JAX's
        self._writer = metric_writers.create_default_writer(str(directory))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hands the scalars to clu's writing thread."""
        self._writer.write_scalars(step, dict(metrics))

    def close(self) -> None:
        """Flushes the event file."""
        self._writer.flush()
        self._writer.close()


class WandbWriter:
    """Weights & Biases; a resumed run continues under the id kept in the workdir."""

    def __init__(
        self, project: str, workdir: Path, config: Mapping[str, Any], group: str = ""
    ) -> None:
        """Starts the run, or resumes it."""
        check_wandb(project)
        import wandb

        id_file = workdir / "wandb_id"
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex)
        self._run = wandb.init(
            project=project,
            group=group or None,
            id=id_file.read_text(),
            resume="allow",
            name=workdir.name,
            dir=str(workdir),
            config=dict(config),
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the scalars; a step that the service already has is ignored there."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Finishes the upload."""
        self._run.finish()


class MultiWriter:
    """Passes everything on to several writers."""

    def __init__(self, writers: Sequence[MetricWriter]) -> None:
        """Holds the writers in order."""
        self._writers = writers

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes to each writer."""
        for writer in self._writers:
            writer.write(step, metrics)

    def close(self) -> None:
        """Closes each writer."""
        for writer in self._writers:
            writer.close()


def check_wandb(project: str) -> None:
    """Raises ValueError if a project is named and wandb is not installed."""
    if project and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            f"config.wandb_project: {project!r} found but wandb is not installed, expected '' or "
            "`pip install wandb`"
        )


def make_writer(config: ConfigDict, workdir: Path, resume_step: int, primary: bool) -> MetricWriter:
    """Returns the writers that the configuration and the machine allow.

    Args:
      config: the run's configuration.
      workdir: the run's folder.
      resume_step: the step that the run continues from, 0 for a new one.
      primary: whether this process is the one that writes.
    """
    if not primary:
        return MultiWriter([])
    writers: list[MetricWriter] = [JsonlWriter(workdir / METRICS_FILE, resume_step)]
    if config.tensorboard:
        if importlib.util.find_spec("tensorflow") is None:
            logger.info("TensorFlow is not installed: no TensorBoard files, only %s", METRICS_FILE)
        else:
            writers.append(CluWriter(workdir))
    if config.wandb_project:
        group = config.wandb_group
        writers.append(WandbWriter(config.wandb_project, workdir, config.to_dict(), group))
    return MultiWriter(writers)
