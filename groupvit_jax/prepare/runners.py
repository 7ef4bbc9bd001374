"""Runners of the preparation: processes on this machine, or Apache Beam workers.

Both only call a function once per task; tasks share nothing but files.
"""

import logging
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from groupvit_jax.processes import end_with_parent

logger = logging.getLogger(__name__)

__all__ = ["Runner", "WorkerDiedError", "beam_runner", "local_runner"]

# Calls a function once per task, in any order.
Runner = Callable[[Callable[[Any], Any], Sequence[Any]], None]


class WorkerDiedError(RuntimeError):
    """A worker process ended without an exception, usually because memory ran out."""


def local_runner(num_workers: int) -> Runner:
    """Return a runner with `num_workers` processes on this machine; 1 uses this process."""

    def run(function: Callable[[Any], Any], tasks: Sequence[Any]) -> None:
        num_processes = min(num_workers, len(tasks))
        if num_processes <= 1:
            for number, task in enumerate(tasks, 1):
                logger.info("%d of %d: %s", number, len(tasks), function(task))
            return
        _run_processes(function, tasks, num_processes)

    return run


def _run_processes(
    function: Callable[[Any], Any], tasks: Sequence[Any], num_processes: int
) -> None:
    # Spawned, not forked: a fork would copy locks held by other threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, context, end_with_parent) as pool:
        futures = [pool.submit(function, task) for task in tasks]
        try:
            for number, future in enumerate(as_completed(futures), 1):
                logger.info("%d of %d: %s", number, len(tasks), future.result())
        except BrokenProcessPool as error:
            message = "a worker process was killed (out of memory?); fewer --num_workers need less"
            raise WorkerDiedError(f"{message}; the same command goes on from here") from error
        finally:
            pool.shutdown(cancel_futures=True)


def beam_runner(name: str, arguments: Sequence[str]) -> Runner:
    """Return a runner that executes tasks as an Apache Beam pipeline.

    Args:
      name: e.g. "DirectRunner", "FlinkRunner", "SparkRunner", "DataflowRunner".
      arguments: Beam's own flags, e.g. ["--flink_master=localhost:8081"].

    Raises:
      ImportError: Apache Beam is not installed.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions
    except ImportError as error:
        message = f"--runner={name} needs Apache Beam: pip install -e '.[beam]'"
        raise ImportError(message) from error

    def run(function: Callable[[Any], Any], tasks: Sequence[Any]) -> None:
        if not tasks:
            return
        options = PipelineOptions([f"--runner={name}", *arguments])
        options.view_as(SetupOptions).save_main_session = False
        with beam.Pipeline(options=options) as pipeline:
            # The reshuffle distributes the tasks, so that idle workers take the next one.
            numbered = pipeline | beam.Create(list(tasks)) | beam.Reshuffle()
            _ = numbered | beam.Map(function)

    return run
