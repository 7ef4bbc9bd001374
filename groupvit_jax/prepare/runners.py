"""Who calls the preparation's functions: this machine's processes, or Apache Beam's workers.

Both do nothing but call a function once for every task; the tasks share nothing but files.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from absl import logging

from groupvit_jax.processes import end_with_parent

__all__ = ["Runner", "WorkerDiedError", "beam_runner", "local_runner"]

# Calls a function once for each task, in any order.
Runner = Callable[[Callable[[Any], Any], Sequence[Any]], None]


class WorkerDiedError(RuntimeError):
    """A worker process ended without an exception, mostly for want of memory."""


def local_runner(num_workers: int) -> Runner:
    """Runs tasks in so many processes of this machine; 1 means in this one."""

    def run(function: Callable[[Any], Any], tasks: Sequence[Any]) -> None:
        num_processes = min(num_workers, len(tasks))
        if num_processes <= 1:
            for number, task in enumerate(tasks, 1):
                logging.info("%d of %d: %s", number, len(tasks), function(task))
            return
        _run_processes(function, tasks, num_processes)

    return run


def _run_processes(
    function: Callable[[Any], Any], tasks: Sequence[Any], num_processes: int
) -> None:
    # Not forked: threads of this process may hold locks that a fork would copy.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, context, end_with_parent) as pool:
        futures = [pool.submit(function, task) for task in tasks]
        try:
            for number, future in enumerate(as_completed(futures), 1):
                logging.info("%d of %d: %s", number, len(tasks), future.result())
        except BrokenProcessPool as error:
            message = "a worker process was killed (out of memory?); fewer --num_workers need less"
            raise WorkerDiedError(f"{message}; the same command goes on from here") from error
        finally:
            pool.shutdown(cancel_futures=True)


def beam_runner(name: str, arguments: Sequence[str]) -> Runner:
    """Runs tasks as an Apache Beam pipeline.

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
            # The reshuffle lets every worker take the next task, and is where work is spread.
            numbered = pipeline | beam.Create(list(tasks)) | beam.Reshuffle()
            _ = numbered | beam.Map(function)

    return run
