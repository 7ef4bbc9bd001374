"""Training: start or resume a run, run the steps with their hooks, end in a saved state."""

import collections
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from groupvit_jax import parallel
from groupvit_jax.data.pipeline.contrastive import BrokenSampleMonitor, TrainLoader
from groupvit_jax.data.storage.objects import is_remote
from groupvit_jax.runs import layout
from groupvit_jax.runs.bucket.opening import open_workdir
from groupvit_jax.runs.configuration import check_same_run
from groupvit_jax.runs.evaluator import Evaluator
from groupvit_jax.runs.goodput import Goodput, describe, spent_before
from groupvit_jax.runs.metrics_file import all_records
from groupvit_jax.runs.starts import write_start
from groupvit_jax.train import hooks as hooks_lib
from groupvit_jax.train import setup
from groupvit_jax.train.checkpointer import Checkpointer, CheckpointSettings
from groupvit_jax.train.data_position import DataPosition, continue_from
from groupvit_jax.train.goodput_hooks import RecordGoodput, Timed
from groupvit_jax.train.initial_state import Initialisers, initial_state
from groupvit_jax.train.kernel_check import checked_loss
from groupvit_jax.train.prefetch import DeviceBatch, DevicePrefetcher
from groupvit_jax.train.progress import telling
from groupvit_jax.train.state import TrainState
from groupvit_jax.train.step import NormsOfLoggedSteps, make_train_step
from groupvit_jax.train.stopping import StopRequest
from groupvit_jax.train.writers import MetricWriter, make_writer
from groupvit_jax.typing import Array

logger = logging.getLogger(__name__)

# Steps dispatched but not done. Two hide the host's work between steps; each one more would hold
# another batch in the devices' memory.
STEPS_IN_FLIGHT = 2

MakeEvaluators = Callable[[setup.Parts], Sequence[tuple[Evaluator, int]]]
MakeHooks = Callable[[setup.Parts], Sequence[hooks_lib.Hook]]
ProgressDisplay = Callable[[int, int, str], None]
TrainStep = Callable[[TrainState, Mapping[str, Array]], tuple[TrainState, Mapping[str, Array]]]


@dataclasses.dataclass(frozen=True)
class Result:
    """End of a run: the number of steps done, and whether the run is complete."""

    step: int
    complete: bool


def log_progress(step: int, num_steps: int, text: str) -> None:
    """Show progress as a line of the log."""
    logger.info("step %d/%d (%.1f %%)  %s", step, num_steps, 100 * step / num_steps, text)


def train(
    config: ConfigDict,
    workdir: Path | str,
    *,
    make_evaluators: MakeEvaluators = lambda parts: (),
    initialisers: Initialisers = MappingProxyType({}),
    show: ProgressDisplay = log_progress,
    make_hooks: MakeHooks = lambda parts: (),
    restore_step: int | None = None,
) -> Result:
    """Train as configured, or resume where the workdir's run stopped.

    Args:
      config: the whole configuration.
      workdir: the run's folder, or the URL of one on a bucket; created if missing.
      make_evaluators: makes pairs of an evaluator and its interval in steps from the run's parts.
        Passed in like the initialisers, because `eval` and `interop` are on the same floor.
      initialisers: readers of weights by configuration field (`interop.INITIALISERS`).
      show: shows step, number of steps and a text.
      make_hooks: makes more hooks from the parts; they run when a step's metrics are written.
      restore_step: a step to go back to, once (`OpenWorkdir.roll_back`).

    Raises:
      ValueError, FileNotFoundError: configuration, workdir or data are wrong, or another run uses
        the workdir; raised before anything is compiled.
      NonFiniteError: training has diverged; earlier checkpoints are kept.
      LockLostError: the workdir was removed, or another run has taken it over.
      TooManyBrokenSamplesError: more than `config.data.max_broken_fraction` of samples are broken.
    """
    # Closed in reverse order: the readers, the checkpoints (after their write), last the lock.
    with contextlib.ExitStack() as stack:
        opened = open_workdir(workdir, stack, restore_step)
        with telling("checking the configuration and reading the data's indices"):
            parts = setup.build(config, opened.folder)
        # Before anything is restored: wrong evaluation data should be found in seconds.
        evaluators = make_evaluators(parts)
        stop = stack.enter_context(StopRequest())
        opened.roll_back()
        checkpoints, keep = _open_checkpoints(parts, opened.name, stack)
        state, position = _restore(parts, checkpoints, initialisers)
        if position.first_step >= parts.num_steps:
            logger.info("all %d steps of this run are done", parts.num_steps)
            return Result(position.first_step, complete=True)
        goodput, writer = _start_records(parts, position.first_step, opened.name, stack)
        metrics = hooks_lib.StepMetrics(goodput=goodput)
        save = hooks_lib.SaveCheckpoint(checkpoints, metrics, position.after, keep)
        # The order matters: metrics and evaluations enter the record before it is shown, written
        # and, last, saved with the checkpoint.
        hooks = [
            hooks_lib.CheckWorkdir(*opened.checks),
            *_step_hooks(parts, metrics, show),
            *_record_hooks(goodput, evaluators, writer),
            *make_hooks(parts),
            Timed(save, goodput, "saving"),
        ]
        batches = stack.enter_context(open_batches(parts, position))
        context = hooks_lib.StepContext(position.first_step, parts.num_steps, state)
        context = run_steps(context, _make_step(parts, context.step), batches, hooks, metrics, stop)
        logger.info("wall time: %s", describe(goodput.record()))
    return Result(context.step, complete=context.is_last)


def _restore(
    parts: setup.Parts, checkpoints: Checkpointer, initialisers: Initialisers
) -> tuple[TrainState, DataPosition]:
    """Return the state and the position in the data to go on from, or those of a fresh start.

    Raises:
      ValueError: the workdir holds another run, or the data have changed.
    """
    config = parts.config
    with telling("restoring or initialising the state"):
        state, saved = initial_state(
            config, checkpoints, parts.abstract_state, parts.fresh_state, initialisers
        )
    check_same_run(config, parts.workdir, resuming=saved is not None)
    position = continue_from(
        saved,
        batch_size=config.train.batch_size,
        seed=config.seed,
        num_examples=parts.examples.num_samples,
    )
    return state, position


def _open_checkpoints(
    parts: setup.Parts, name: str, stack: contextlib.ExitStack
) -> tuple[Checkpointer, CheckpointSettings]:
    """Open the run's checkpoints until the stack closes, which waits for the last write.

    Args:
      parts: of the run.
      name: the workdir as it was given.
      stack: closes them.
    """
    config = parts.config
    keep = CheckpointSettings(**config.checkpoint)
    folder = parts.workdir / layout.CHECKPOINTS
    is_shared = not is_remote(name)
    checkpoints = Checkpointer(folder, keep, config.to_dict(), parts.vocabulary, is_shared)
    stack.callback(checkpoints.close)
    return checkpoints, keep


def _start_records(
    parts: setup.Parts, first_step: int, name: str, stack: contextlib.ExitStack
) -> tuple[Goodput, MetricWriter]:
    """Record this start of the run; return its goodput so far, and the writer of its metrics.

    Args:
      parts: of the run.
      first_step: the step that is resumed from.
      name: the workdir as it was given.
      stack: closes the writer.
    """
    # Before the writer drops the lines beyond the step that is resumed from.
    goodput = Goodput(spent_before(all_records(parts.workdir), first_step))
    config, primary = parts.config, jax.process_index() == 0
    if primary:
        write_start(config.to_dict(), parts.workdir, first_step, name=name)
    writer = make_writer(
        parts.workdir,
        first_step,
        primary=primary,
        run_config=config.to_dict(),
        tensorboard=config.tensorboard,
        wandb_project=config.wandb_project,
        wandb_group=config.wandb_group,
    )
    stack.callback(writer.close)
    return goodput, writer


def _step_hooks(
    parts: setup.Parts, metrics: hooks_lib.StepMetrics, show: ProgressDisplay
) -> list[hooks_lib.Hook]:
    """Return the hooks that profile steps, collect their metrics and show progress."""
    config = parts.config
    return [
        hooks_lib.Profile(config.profile_steps, parts.workdir / layout.PROFILE),
        hooks_lib.LogMetrics(metrics, config.log_every_steps, config.train.batch_size),
        hooks_lib.ShowProgress(show if jax.process_index() == 0 else _show_nothing),
    ]


def _record_hooks(
    goodput: Goodput, evaluators: Sequence[tuple[Evaluator, int]], writer: MetricWriter
) -> list[hooks_lib.Hook]:
    """Return the hooks that evaluate and write the record of a step."""
    return [
        Timed(hooks_lib.Evaluate(evaluators), goodput, "evaluating"),
        RecordGoodput(goodput),
        hooks_lib.WriteMetrics(writer),
    ]


def run_steps(
    context: hooks_lib.StepContext,
    train_step: TrainStep,
    batches: DevicePrefetcher,
    hooks: Sequence[hooks_lib.Hook],
    step_metrics: hooks_lib.StepMetrics,
    stop: StopRequest,
) -> hooks_lib.StepContext:
    """Train to the last step, or until a stop is requested.

    Args:
      context: where to start; its state is donated.
      train_step: `(state, batch) -> (state, metrics)`, asynchronous.
      batches: the batches of the steps to come.
      hooks: run after each step, in this order.
      step_metrics: collects the metrics and the time of each step.
      stop: asked after each step and while there is no batch.

    Returns:
      The context of the last step done.
    """
    first_step = context.step
    in_flight: collections.deque[Any] = collections.deque()
    while not context.is_last and not stop.agreed(context.step):
        for hook in hooks:
            hook.before_step(context.step + 1)
        with step_metrics.waiting_for_input():
            batch = batches.next_batch(give_up=stop.received)
        if batch is None:
            break
        # An implicit transfer, such as a NumPy array or `float(metric)` that slips into a step,
        # makes host and devices wait for each other without any other sign.
        with step_metrics.training(), jax.transfer_guard("disallow"):
            state, metrics = train_step(context.state, batch)
            # Waiting for an older step keeps the host ahead of the devices, but not so far that
            # batches pile up in their memory.
            in_flight.append(metrics)
            if len(in_flight) > STEPS_IN_FLIGHT:
                jax.block_until_ready(in_flight.popleft())
        context = hooks_lib.StepContext(context.step + 1, context.num_steps, state)
        step_metrics.add(context.step, metrics)
        if context.step == first_step + 1:
            _finish_first_step(step_metrics, metrics)
        for hook in hooks:
            hook.after_step(context)
    if not context.is_last:
        logger.warning("stop requested: ending after step %d", context.step)
    for hook in hooks:
        hook.at_end(context)
    return context


@contextlib.contextmanager
def open_batches(parts: setup.Parts, position: DataPosition) -> Iterator[DevicePrefetcher]:
    """Yield the run's batches from `position` on; too many broken samples raise an error."""
    config = parts.config
    monitor = BrokenSampleMonitor(config.data.max_broken_fraction)

    def send(host_batch: Mapping[str, np.ndarray]) -> DeviceBatch:
        batch = dict(host_batch)
        monitor.update(batch.pop("broken"))  # a count for the host, no input of the step
        return parallel.to_global_batch(parts.mesh, batch)

    # Not the process index: processes that only `tensor` tells apart read the same rows.
    part, num_parts = parallel.batch_part(parts.mesh)
    loader = TrainLoader(
        parts.examples,
        config.train.batch_size,
        num_workers=config.data.num_workers,
        host_index=part,
        host_count=num_parts,
        start_step=position.first_batch,
    )
    # The prefetcher is closed first: its thread reads from the loader.
    with contextlib.closing(loader):
        prefetcher = DevicePrefetcher(loader, send, config.data.prefetch)
        with contextlib.closing(prefetcher):
            yield prefetcher


def _make_step(parts: setup.Parts, first_step: int) -> TrainStep:
    """Return the step; it is built at its first call, to check kernels with a real batch."""
    built: list[TrainStep] = []

    def step(
        state: TrainState, batch: Mapping[str, Array]
    ) -> tuple[TrainState, Mapping[str, Array]]:
        if built:
            return built[0](state, batch)
        with telling("compiling the step"):  # its first call does
            built.append(_build_step(parts, state, batch))
            return built[0](state, batch)

    return NormsOfLoggedSteps(step, first_step, parts.num_steps, parts.config.log_every_steps)


def _build_step(parts: setup.Parts, state: TrainState, batch: Mapping[str, Array]) -> TrainStep:
    shardings = jax.tree.map(lambda leaf: leaf.sharding, parts.abstract_state)
    loss_fn = checked_loss(parts.task, parts.model, parts.config, parts.mesh, state, batch)
    settings = parts.config.optimizer
    train_step = make_train_step(
        loss_fn, parts.optimizer, parts.schedule, parts.mesh, shardings, settings.groups,
        settings.ema_decay,
    )  # fmt: skip
    if jax.process_count() == 1:
        return train_step
    # One process may find the program in its cache and another compile for minutes, but collectives
    # of the first step give up when a process arrives half a minute late.
    compiled = train_step.lower(state, batch).compile()
    parallel.wait_for_processes("compiled")
    return compiled


def _finish_first_step(step_metrics: hooks_lib.StepMetrics, metrics: Mapping[str, Array]) -> None:
    """Wait for the first step, so that its compilation doesn't count as slow training."""
    with step_metrics.training(steps=0):
        jax.block_until_ready(metrics)
    logger.info("the first step took %.1f s, compiling it included", step_metrics.seconds)
    # The first batch comes from readers that have just started: waiting for it is no compiling.
    compiling = step_metrics.seconds - step_metrics.input_seconds
    step_metrics.goodput.add("compiling", compiling)
    step_metrics.goodput.add("stepping", -compiling)
    step_metrics.reset_time()


def _show_nothing(step: int, num_steps: int, text: str) -> None:
    """No-op; only process 0 reports progress."""
