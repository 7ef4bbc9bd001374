"""Metric writers: `metrics.jsonl` always, TensorBoard and Weights & Biases on request.

A line of `metrics.jsonl` that can't be written ends the run, because resuming relies on the file.
The other two only draw curves: without them the run goes on (`Expendable`).
"""

import importlib.util
import logging
import os
import queue
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from groupvit_jax.runs.layout import METRICS_FILE, WANDB_ID_FILE
from groupvit_jax.runs.metrics_file import MetricsFile

logger = logging.getLogger(__name__)

# How long the end of a run waits for curves that are still on their way to a slow service.
CLOSE_SECONDS = 20.0
# Records on their way to a service that doesn't answer; a day of a fast run, a few megabytes.
_MAX_WAITING = 10_000


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
        # Before the import, at which TensorFlow reads it.
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


class Expendable:
    """Runs a writer in a thread of its own; its errors and delays cost its curves, never the run.

    Even the start of a run at a service may hang: a connection that nobody answers takes the client
    library minutes.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], MetricWriter],
        close_seconds: float | None,
    ) -> None:
        """Start the thread.

        Args:
          name: what the curves are written to, for the log.
          make: returns the writer; called in the thread.
          close_seconds: how long `close` waits; None for as long as it takes.
        """
        self._name, self._make, self._close_seconds = name, make, close_seconds
        # None ends the thread.
        self._waiting: queue.Queue[tuple[int, Mapping[str, float]] | None] = queue.Queue(
            _MAX_WAITING
        )
        self._failed = False
        # A daemon, so that a call that hangs doesn't keep the process from ending.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hand the metrics to the thread."""
        self._put((step, dict(metrics)))

    def close(self) -> None:
        """Wait for what is on its way, but not for long."""
        self._put(None)
        self._thread.join(self._close_seconds)
        if self._thread.is_alive() and not self._failed:
            self._fail(f"no answer {self._close_seconds:g} s after the last step")

    def _put(self, item: tuple[int, Mapping[str, float]] | None) -> None:
        if self._failed:
            return
        try:
            self._waiting.put_nowait(item)
        except queue.Full:
            self._fail(f"no answer while {_MAX_WAITING} records wait")

    def _work(self) -> None:
        try:
            writer = self._make()
            while (item := self._waiting.get()) is not None:
                writer.write(*item)
            writer.close()
        # Of a foreign library, its network and its service: anything.
        except Exception as error:
            self._fail(error)

    def _fail(self, why: Exception | str) -> None:
        self._failed = True
        _warn_of_lost_curves(self._name, why)


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
            writers += _tensorboard(workdir)
    if wandb_project:
        writers.append(
            Expendable(
                "Weights & Biases",
                lambda: WandbWriter(wandb_project, workdir, run_config, wandb_group),
                CLOSE_SECONDS,
            )
        )
    return MultiWriter(writers)


def _tensorboard(workdir: Path) -> list[MetricWriter]:
    try:
        # In this thread: TensorFlow takes long to import, and evaluators may import it as well.
        writer = CluWriter(workdir)
    except Exception as error:  # an installation or a disk that is broken
        _warn_of_lost_curves("TensorBoard", error)
        return []
    return [Expendable("TensorBoard", lambda: writer, close_seconds=None)]


def _warn_of_lost_curves(name: str, why: Exception | str) -> None:
    if isinstance(why, Exception):
        why = " ".join(f"{type(why).__name__}: {why}".split())[:300]
    logger.warning(
        "%s: no more curves (%s); the run goes on, and %s has all metrics", name, why, METRICS_FILE
    )
