"""What happens around a training step: metrics, evaluation, checkpoints, progress, profiling."""

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
from ml_collections import ConfigDict

from groupvit_jax.runs.evaluator import Evaluator
from groupvit_jax.train.checkpoint import Checkpointer
from groupvit_jax.train.state import TrainState
from groupvit_jax.train.writers import MetricWriter
from groupvit_jax.typing import Array, Bool, PyTree

logger = logging.getLogger(__name__)


class NonFiniteError(ArithmeticError):
    """A loss, a gradient or a parameter is not finite."""


@dataclasses.dataclass
class StepContext:
    """What the hooks of one step see and add to.

    Attributes:
      step: the number of steps done.
      num_steps: the number of steps of the whole run.
      state: the state after the step; it is donated to the next step.
      record: the metrics of this step, on the host, to be written.
    """

    step: int
    num_steps: int
    state: TrainState
    record: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def is_last(self) -> bool:
        """Returns whether the run is complete."""
        return self.step == self.num_steps


class Hook:
    """Does nothing at all the moments; subclasses choose theirs."""

    def before_step(self, step: int) -> None:
        """Runs before the step that makes `step` steps done."""

    def after_step(self, context: StepContext) -> None:
        """Runs after each step, in the order of the hooks."""

    def at_end(self, context: StepContext) -> None:
        """Runs once, when the run is complete or was asked to stop; not after an error."""


class StepMetrics:
    """The metrics of the steps, left on the devices until somebody looks, and the time they took.

    Evaluation and checkpoints don't count as time.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Starts empty; `clock` gives seconds."""
        self._clock = clock
        self._pending: list[tuple[int, Mapping[str, Array]]] = []
        self.reset_time()

    def reset_time(self) -> None:
        """Starts to measure anew."""
        self.steps = 0
        self.seconds = 0.0
        self.input_seconds = 0.0

    def add(self, step: int, metrics: Mapping[str, Array]) -> None:
        """Keeps the metrics of a step; nothing is transferred."""
        self._pending.append((step, metrics))

    def fetch(self) -> dict[str, float]:
        """Returns the last step's metrics, if there are any since the last fetch.

        Raises:
          NonFiniteError: a loss or a norm of a step since the last fetch is not finite.
        """
        with self.training(steps=0):
            fetched = jax.device_get(self._pending)
        self._pending.clear()
        for step, metrics in fetched:
            for name in sorted(metrics, key=lambda name: name != "loss"):
                if name.endswith(("loss", "_norm")) and not math.isfinite(metrics[name]):
                    raise NonFiniteError(f"step {step}: {name} is {metrics[name]}")
        return {name: float(value) for name, value in fetched[-1][1].items()} if fetched else {}

    @contextlib.contextmanager
    def training(self, steps: int = 1) -> Iterator[None]:
        """Counts the time inside, and the steps that it is for."""
        start = self._clock()
        yield
        self.seconds += self._clock() - start
        self.steps += steps

    @contextlib.contextmanager
    def waiting_for_input(self) -> Iterator[None]:
        """Counts the time inside, and as lost by waiting for data."""
        start = self._clock()
        with self.training(steps=0):
            yield
        self.input_seconds += self._clock() - start


class LogMetrics(Hook):
    """Fetches the metrics every few steps and at the end, with the speed since the last time."""

    def __init__(self, metrics: StepMetrics, every_steps: int, batch_size: int) -> None:
        """Takes the metrics that the loop collects."""
        self._metrics = metrics
        self._every_steps, self._batch_size = every_steps, batch_size

    def after_step(self, context: StepContext) -> None:
        """Adds metrics and speed to the record."""
        if context.step % self._every_steps and not context.is_last:
            return
        metrics = self._metrics
        context.record.update(metrics.fetch())
        if metrics.steps:
            context.record["images_per_second"] = self._batch_size * metrics.steps / metrics.seconds
            context.record["seconds_per_step"] = metrics.seconds / metrics.steps
            context.record["input_wait_seconds_per_step"] = metrics.input_seconds / metrics.steps
        metrics.reset_time()


class Evaluate(Hook):
    """Runs each evaluator every so many steps (0: only then) and when the run is complete."""

    def __init__(self, evaluators: Sequence[tuple[Evaluator, int]]) -> None:
        """Takes pairs of an evaluator and its interval in steps."""
        self._evaluators = evaluators

    def after_step(self, context: StepContext) -> None:
        """Adds the metrics of the evaluators that are due to the record."""
        for evaluator, every_steps in self._evaluators:
            if context.is_last or (every_steps and context.step % every_steps == 0):
                start = time.perf_counter()
                variables = dict(params=context.state.params, batch_stats=context.state.batch_stats)
                metrics = evaluator(variables)
                context.record.update(
                    {f"{evaluator.name}/{name}": float(value) for name, value in metrics.items()}
                )
                seconds = time.perf_counter() - start
                logger.info(
                    "%s after step %d: %s (%.1f s)",
                    evaluator.name,
                    context.step,
                    ", ".join(f"{k} {v:.4g}" for k, v in metrics.items()),
                    seconds,
                )


class WriteMetrics(Hook):
    """Writes the record of a step, once, before the checkpoint that may follow."""

    def __init__(self, writer: MetricWriter) -> None:
        """Uses the run's writer."""
        self._writer = writer

    def after_step(self, context: StepContext) -> None:
        """Writes what the hooks before this one have recorded."""
        if context.record:
            self._writer.write(context.step, context.record)


class SaveCheckpoint(Hook):
    """Saves finite states only: every few steps, after a look at the best metric, at the end."""

    def __init__(
        self,
        checkpointer: Checkpointer,
        metrics: StepMetrics,
        position: Callable[[int], Mapping[str, Any]],
        config: ConfigDict,
    ) -> None:
        """Takes what to save with.

        Args:
          checkpointer: where to.
          metrics: of the steps; those that nobody has looked at are checked before a save.
          position: gives the data position after a step.
          config: `config.checkpoint`.
        """
        self._checkpointer, self._metrics, self._position = checkpointer, metrics, position
        self._config = config

    def after_step(self, context: StepContext) -> None:
        """Saves where it is due."""
        regular = context.step % self._config.every_steps == 0
        if regular or self._config.best_metric in context.record:
            self._save(context)

    def at_end(self, context: StepContext) -> None:
        """Saves the last state, also that of a run which was asked to stop."""
        if context.step != self._checkpointer.latest_step():
            self._save(context)

    def _save(self, context: StepContext) -> None:
        self._metrics.fetch()
        check_finite(context.state, context.step)
        position = self._position(context.step)
        self._checkpointer.save(context.step, context.state, position, context.record)
        logger.info("the state after step %d is being saved", context.step)


class ShowProgress(Hook):
    """Shows loss, speed and the time left, with each record that has a speed."""

    def __init__(self, show: Callable[[int, int, str], None]) -> None:
        """Takes a function of step, number of steps and text."""
        self._show = show

    def after_step(self, context: StepContext) -> None:
        """Shows a line."""
        if "loss" in context.record:
            self._show(context.step, context.num_steps, progress_text(context))


class Profile(Hook):
    """Traces the steps from the first to the last of a range, for TensorBoard or Perfetto."""

    def __init__(self, steps: tuple[int, int], directory: Path) -> None:
        """Takes the range (both ends included; (0, 0) for none) and where to write."""
        self._first, self._last = steps
        self._directory = directory
        self._tracing = False

    def before_step(self, step: int) -> None:
        """Starts the trace."""
        if step == self._first:
            jax.profiler.start_trace(str(self._directory))
            self._tracing = True

    def after_step(self, context: StepContext) -> None:
        """Ends the trace, once the devices have done the step."""
        if context.step == self._last:
            self._stop(context)

    def at_end(self, context: StepContext) -> None:
        """Ends a trace that the run was too short for."""
        self._stop(context)

    def _stop(self, context: StepContext) -> None:
        if self._tracing:
            jax.block_until_ready(context.state)
            jax.profiler.stop_trace()
            self._tracing = False
            logger.info("the profile of the steps up to %d is in %s", context.step, self._directory)


def progress_text(context: StepContext) -> str:
    """Returns the line for people: loss, speed, share of time without data, time left."""
    record = context.record
    text = f"loss {record['loss']:.4f}"
    if "seconds_per_step" in record:
        share = record["input_wait_seconds_per_step"] / record["seconds_per_step"]
        left = (context.num_steps - context.step) * record["seconds_per_step"]
        text += f"  {record['images_per_second']:.1f} images/s  input wait {share:.0%}"
        text += f"  {_duration(left)} left"
    return text


def check_finite(state: TrainState, step: int) -> None:
    """Raises NonFiniteError that names the first array of the state that is not finite."""
    finite = jax.device_get(_finite_arrays((state.params, state.batch_stats, state.opt_state)))
    for path, value in jax.tree_util.tree_leaves_with_path(finite):
        if not value:
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
