"""Hooks around the training step: metrics, evaluation, checkpoints, progress, profiling."""

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from groupvit_jax.runs.evaluator import Evaluator
from groupvit_jax.runs.goodput import Goodput
from groupvit_jax.train.checkpointer import Checkpointer, CheckpointSettings
from groupvit_jax.train.state import TrainState
from groupvit_jax.train.writers import MetricWriter
from groupvit_jax.typing import Array, Bool, PyTree

logger = logging.getLogger(__name__)


class NonFiniteError(ArithmeticError):
    """Raised when a loss, a gradient or a parameter is not finite."""


@dataclasses.dataclass
class StepContext:
    """State of the run after a step, as the hooks see it.

    Attributes:
      step: number of steps done.
      num_steps: number of steps of the whole run.
      state: the state after the step. The next step donates it: a hook that needs it for longer
        has to copy it.
      record: metrics of this step, on the host; hooks add to it, `WriteMetrics` writes it.
    """

    step: int
    num_steps: int
    state: TrainState
    record: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def is_last(self) -> bool:
        """Whether the run is complete."""
        return self.step == self.num_steps


class Hook:
    """Base hook; every callback is a no-op."""

    def before_step(self, step: int) -> None:
        """Run before step number `step`, counted from 1."""

    def after_step(self, context: StepContext) -> None:
        """Run after each step, in the order of the hooks."""

    def at_end(self, context: StepContext) -> None:
        """Run once when the run is complete or stops on request, not after an error."""


class CheckWorkdir(Hook):
    """Ends a run that has lost its workdir, before it writes there again."""

    def __init__(self, *checks: Callable[[], None]) -> None:
        """Take functions that raise if the lock is lost, or the bucket."""
        self._checks = checks

    def after_step(self, context: StepContext) -> None:
        """Raise LockLostError or WorkdirError."""
        for check in self._checks:
            check()


class StepMetrics:
    """Metrics of the steps, left on the devices until they are fetched, and the time they took.

    Fetching waits for the devices, so it is done every few steps only; the host then stays ahead of
    them. Evaluation and checkpoints don't count as training time.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        goodput: Goodput | None = None,
    ) -> None:
        """Start empty; `clock` returns seconds, and `goodput` counts them over the whole run."""
        self._clock = clock
        self.goodput = goodput or Goodput(clock=clock)
        self._pending: list[tuple[int, Mapping[str, Array]]] = []
        self.reset_time()

    def reset_time(self) -> None:
        """Start a new measurement."""
        self.steps = 0
        self.seconds = 0.0
        self.input_seconds = 0.0

    def add(self, step: int, metrics: Mapping[str, Array]) -> None:
        """Keep the metrics of a step; nothing is transferred."""
        self._pending.append((step, metrics))

    def fetch(self) -> dict[str, float]:
        """Return the metrics of the last step since the last fetch, {} without one.

        Raises:
          NonFiniteError: a loss or a norm of any step since the last fetch is not finite.
        """
        # What is waited for here are steps, dispatched and counted before.
        with self.training(steps=0):
            fetched = jax.device_get(self._pending)
        self._pending.clear()
        # Every step is checked, not the last one only, so that the message names the first that
        # failed.
        for step, metrics in fetched:
            # The total loss first: it is the name that people look for.
            for name in sorted(metrics, key=lambda name: name != "loss"):
                if name.endswith(("loss", "_norm")) and not math.isfinite(metrics[name]):
                    raise NonFiniteError(f"step {step}: {name} is {metrics[name]}")
        return {name: float(value) for name, value in fetched[-1][1].items()} if fetched else {}

    @contextlib.contextmanager
    def training(self, steps: int = 1) -> Iterator[None]:
        """Count the time of the block, and its number of steps."""
        start = self._clock()
        yield
        elapsed = self._clock() - start
        self.seconds += elapsed
        self.goodput.add("stepping", elapsed)
        self.steps += steps

    @contextlib.contextmanager
    def waiting_for_input(self) -> Iterator[None]:
        """Count the time of the block as training and as waiting for data."""
        start = self._clock()
        with self.training(steps=0):
            yield
        elapsed = self._clock() - start
        self.input_seconds += elapsed
        # Moved from "stepping", where `training` has put it: kinds of goodput exclude each other.
        self.goodput.add("input", elapsed)
        self.goodput.add("stepping", -elapsed)


# Of the time: less is noise, more is worth another worker.
_LONG_INPUT_WAIT = 0.1
# Of the images; docs/text.md has the lengths that lose less.
_TOLERATED_OVERFLOW = 0.01


class LogMetrics(Hook):
    """Records the metrics every few steps and at the end, with the speed since the last record.

    Warns once where the devices wait for input and once where prompts find no room in their rows:
    nothing else would show that a run is slow, or trains without a part of its positives.
    """

    def __init__(self, metrics: StepMetrics, every_steps: int, batch_size: int) -> None:
        """Take the metrics that the loop collects, the interval and the global batch size."""
        self._metrics = metrics
        self._every_steps, self._batch_size = every_steps, batch_size
        self._warned = self._warned_of_overflow = False

    def after_step(self, context: StepContext) -> None:
        """Add metrics and speed to the record."""
        if context.step % self._every_steps and not context.is_last:
            return
        metrics = self._metrics
        context.record.update(metrics.fetch())
        self._warn_of_overflow(context)
        # 0 steps after the first one of a start, whose time is mostly compilation.
        if metrics.steps:
            context.record["images_per_second"] = self._batch_size * metrics.steps / metrics.seconds
            context.record["seconds_per_step"] = metrics.seconds / metrics.steps
            context.record["input_wait_seconds_per_step"] = metrics.input_seconds / metrics.steps
            self._warn_of_slow_input(context.step)
        metrics.reset_time()

    def _warn_of_slow_input(self, step: int) -> None:
        metrics = self._metrics
        waiting = metrics.input_seconds / metrics.seconds
        if waiting < _LONG_INPUT_WAIT or self._warned:
            return
        self._warned = True
        logger.warning(
            "up to step %d the devices waited for input %.0f %% of the time: prepared shards, or "
            "more workers (config.data.num_workers) on more cores, help (docs/input.md)",
            step, 100 * waiting,
        )  # fmt: skip

    def _warn_of_overflow(self, context: StepContext) -> None:
        share = context.record.get("text_overflow", 0.0)
        if share <= _TOLERATED_OVERFLOW or self._warned_of_overflow:
            return
        self._warned_of_overflow = True
        logger.warning(
            "step %d: %.1f %% of the images lost a prompt because their texts don't fit into a "
            "row; a larger config.data.packed_length loses fewer (text_overflow, docs/text.md)",
            context.step, 100 * share,
        )  # fmt: skip


class Evaluate(Hook):
    """Runs each evaluator at its interval and when the run is complete."""

    def __init__(self, evaluators: Sequence[tuple[Evaluator, int]]) -> None:
        """Take pairs of an evaluator and its interval in steps (0: only at the end)."""
        self._evaluators = evaluators

    def after_step(self, context: StepContext) -> None:
        """Add the metrics of the evaluators that are due to the record."""
        for evaluator, every_steps in self._evaluators:
            if context.is_last or (every_steps and context.step % every_steps == 0):
                start = time.perf_counter()
                # Passed as they are, in their shards: a copy may not fit beside the optimizer.
                metrics = evaluator(context.state.variables)
                context.record.update(
                    {f"{evaluator.name}/{name}": float(value) for name, value in metrics.items()}
                )
                seconds = time.perf_counter() - start
                logger.info(
                    "%s after step %d: %s (%.1f s)",
                    evaluator.name,
                    context.step,
                    _overall(metrics),
                    seconds,
                )


def _overall(metrics: Mapping[str, float]) -> str:
    """Return the metrics as a line of text, those of single classes (`iou/CLASS`) as a number."""
    parts = [f"{name} {value:.4g}" for name, value in metrics.items() if "/" not in name]
    if omitted := len(metrics) - len(parts):
        parts.append(f"and {omitted} of classes")
    return ", ".join(parts)


class WriteMetrics(Hook):
    """Writes the record of each step.

    It comes before `SaveCheckpoint`: a kill between the two leaves a line without a checkpoint,
    which a resumed run drops. The other order could lose the line for good.
    """

    def __init__(self, writer: MetricWriter) -> None:
        """Take the run's writer."""
        self._writer = writer

    def after_step(self, context: StepContext) -> None:
        """Write the metrics that the hooks before this one have recorded."""
        if context.record:
            self._writer.write(context.step, context.record)


class SaveCheckpoint(Hook):
    """Saves every few steps, after an evaluation of the best metric, and at the end.

    Only finite states are saved: a run that diverges keeps the checkpoints from before.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        metrics: StepMetrics,
        position: Callable[[int], Mapping[str, Any]],
        settings: CheckpointSettings,
    ) -> None:
        """Take the parts.

        Args:
          checkpointer: the workdir's checkpoints.
          metrics: metrics of the steps; those not fetched yet are checked before a save.
          position: returns the data position after a step.
          settings: when checkpoints are saved.
        """
        self._checkpointer, self._metrics, self._position = checkpointer, metrics, position
        self._settings = settings

    def after_step(self, context: StepContext) -> None:
        """Save if it is due."""
        # The best step is known as such only if it is saved when its metric is measured, which may
        # fall between the regular saves.
        regular = context.step % self._settings.every_steps == 0
        if regular or self._settings.best_metric in context.record:
            self._save(context)

    def at_end(self, context: StepContext) -> None:
        """Save the last state, also that of a run that stops on request."""
        if context.step != self._checkpointer.latest_step():
            self._save(context)

    def _save(self, context: StepContext) -> None:
        self._metrics.fetch()
        # Moments of the optimizer can overflow while loss and parameters are still finite.
        check_finite(context.state, context.step)
        position = self._position(context.step)
        self._checkpointer.save(context.step, context.state, position, context.record)
        logger.info("the state after step %d is being saved in the background", context.step)


class ShowProgress(Hook):
    """Shows loss, speed and the time left, with each record."""

    def __init__(self, show: Callable[[int, int, str], None]) -> None:
        """Take a function of step, number of steps and text."""
        self._show = show

    def after_step(self, context: StepContext) -> None:
        """Show a line."""
        if "loss" in context.record:
            self._show(context.step, context.num_steps, progress_text(context))


class Profile(Hook):
    """Traces a range of steps, for TensorBoard or Perfetto."""

    def __init__(self, steps: tuple[int, int], directory: Path) -> None:
        """Take the range (both ends included; (0, 0) for none) and the folder for the trace."""
        self._first, self._last = steps
        self._directory = directory
        self._tracing = False

    def before_step(self, step: int) -> None:
        """Start the trace."""
        if step == self._first:
            jax.profiler.start_trace(str(self._directory))
            self._tracing = True

    def after_step(self, context: StepContext) -> None:
        """End the trace, once the devices have done the last step."""
        if context.step == self._last:
            self._stop(context)

    def at_end(self, context: StepContext) -> None:
        """End a trace that the run was too short for."""
        self._stop(context)

    def _stop(self, context: StepContext) -> None:
        if self._tracing:
            # Steps are asynchronous: the trace would end before the devices reach the last one.
            jax.block_until_ready(context.state)
            jax.profiler.stop_trace()
            self._tracing = False
            logger.info("the profile of the steps up to %d is in %s", context.step, self._directory)


def progress_text(context: StepContext) -> str:
    """Return loss, speed, share of time spent waiting for input and time left, on one line."""
    record = context.record
    text = f"loss {record['loss']:.4f}"
    if "seconds_per_step" in record:
        share = record["input_wait_seconds_per_step"] / record["seconds_per_step"]
        left = (context.num_steps - context.step) * record["seconds_per_step"]
        text += f"  {record['images_per_second']:.1f} images/s  input wait {share:.0%}"
        text += f"  {_duration(left)} left"
    return text


def check_finite(state: TrainState, step: int) -> None:
    """Raise NonFiniteError that names the first array of the state that is not finite."""
    arrays = (state.params, state.batch_stats, state.opt_state, state.average)
    # Reduced on the devices to one flag an array; fetching the arrays would copy the whole state.
    finite = jax.device_get(_finite_arrays(arrays))
    for path, value in jax.tree_util.tree_leaves_with_path(finite):
        if not value:
            # Without the place in the tuple `arrays`.
            name = jax.tree_util.keystr(path[1:], simple=True, separator="/")
            raise NonFiniteError(f"step {step}: {name} is not finite")


@jax.jit
def _finite_arrays(tree: PyTree) -> PyTree:
    def finite(array: Array) -> Bool[Array, ""]:
        return jnp.all(jnp.isfinite(array))

    return jax.tree.map(finite, tree)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
