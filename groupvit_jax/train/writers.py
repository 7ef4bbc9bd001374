"""Metric writers: `metrics.jsonl` always, TensorBoard and Weights & Biases on request."""

import importlib.util
import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from groupvit_jax.runs.layout import METRICS_FILE, WANDB_ID_FILE
from groupvit_jax.runs.metrics_file import MetricsFile

logger = logging.getLogger(__name__)


@runtime_checkable
class MetricWriter(Protocol):
    """Destination of metrics; each step is written once."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of `step`."""

    def close(self) -> None:
        """Write what is buffered and release the files."""


class CluWriter:
    """clu's writers: a log line a step (with --verbosity=0) and TensorBoard event files."""

    def __init__(self, directory: Path) -> None:
        """Open the event file; imports TensorFlow."""
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        import tensorflow as tf
        from clu import metric_writers

        # TensorFlow would otherwise reserve most of the memory of every GPU.
        tf.config.set_visible_devices([], "GPU")
        self._writer = metric_writers.create_default_writer(str(directory))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hand the scalars to clu's writing thread."""
        self._writer.write_scalars(step, dict(metrics))

    def close(self) -> None:
        """Flush the event file."""
        self._writer.flush()
        self._writer.close()


class WandbWriter:
    """Weights & Biases; a resumed run continues under the id in its workdir."""

    def __init__(
        self, project: str, workdir: Path, config: Mapping[str, Any], group: str = ""
    ) -> None:
        """Start the run at the service, or resume it."""
        import wandb

        id_file = workdir / WANDB_ID_FILE
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex)
        self._run = wandb.init(
            project=project,
            group=group or None,
            id=id_file.read_text(),
            resume="allow",  # the id is new in a first start and known in every later one
            name=workdir.name,
            dir=str(workdir),
            config=dict(config),
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the scalars; the service ignores a step that it already has."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Finish the upload."""
        self._run.finish()


class MultiWriter:
    """Writes to several writers, in order."""

    def __init__(self, writers: Sequence[MetricWriter]) -> None:
        """Take the writers."""
        self._writers = writers

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write to each writer."""
        for writer in self._writers:
            writer.write(step, metrics)

    def close(self) -> None:
        """Close each writer."""
        for writer in self._writers:
            writer.close()


def make_writer(
    workdir: Path,
    resume_step: int,
    *,
    primary: bool,
    run_config: Mapping[str, Any] = MappingProxyType({}),
    tensorboard: bool = False,
    wandb_project: str = "",
    wandb_group: str = "",
) -> MetricWriter:
    """Return the configured writers, as far as their libraries are installed.

    Args:
      workdir: the run's folder.
      resume_step: the step that the run resumes from, 0 for a new one.
      primary: whether this process writes: one of several does, because metrics are global.
      run_config: the whole configuration, for Weights & Biases.
      tensorboard: whether event files are wanted.
      wandb_project: project at Weights & Biases; "" for none.
      wandb_group: group of the run there.
    """
    if not primary:
        return MultiWriter([])
    writers: list[MetricWriter] = [MetricsFile(workdir, resume_step)]
    if tensorboard:
        if importlib.util.find_spec("tensorflow") is None:
            logger.info("TensorFlow is not installed: no TensorBoard files, only %s", METRICS_FILE)
        else:
            writers.append(CluWriter(workdir))
    if wandb_project:
        writers.append(WandbWriter(wandb_project, workdir, run_config, wandb_group))
    return MultiWriter(writers)
