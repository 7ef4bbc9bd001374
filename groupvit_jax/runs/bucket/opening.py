"""Taking the workdir for a run, in a folder or on a bucket."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import jax

from groupvit_jax import parallel
from groupvit_jax.data.storage.objects import is_remote
from groupvit_jax.data.storage.retries import StorageError
from groupvit_jax.runs.bucket.mirror import BucketWorkdir
from groupvit_jax.runs.lock import RunLock
from groupvit_jax.runs.workdir import check_writable


def open_workdir(
    workdir: Path | str, stack: contextlib.ExitStack
) -> tuple[Path, list[Callable[[], None]]]:
    """Take the workdir for this run until the stack closes; one of its processes holds the lock.

    Returns:
      The local folder, of a bucket one for each process; and functions that raise when the workdir
      is lost.

    Raises:
      ValueError: the workdir can't be used.
    """
    is_bucket = is_remote(str(workdir))
    place = str(workdir).rstrip("/") if is_bucket else Path(workdir).absolute()
    lock = RunLock(place)
    bucket = BucketWorkdir(str(place), lock.check, jax.process_index())

    def take() -> None:
        if isinstance(place, Path):
            check_writable(place)
        try:
            stack.enter_context(lock)
        except StorageError as error:
            raise ValueError(f"--workdir={place}: can't be written ({error})") from error
        if is_bucket:
            stack.push(_wait_for_uploads)
            stack.enter_context(bucket)

    parallel.by_first_process(take)
    if isinstance(place, Path):
        return place, [lock.check]
    if jax.process_count() > 1:
        if jax.process_index() > 0:
            # After the first has deleted what was never complete.
            stack.push(_wait_for_uploads)
            stack.enter_context(bucket)
        parallel.wait_for_processes("downloaded")  # before the first changes anything
    return bucket.folder, [lock.check, bucket.check]


def _wait_for_uploads(kind: type[BaseException] | None, *_: object) -> None:
    """Wait for the other processes at the end of a run; JAX's shutdown gives up after minutes."""
    if kind is None and jax.process_count() > 1:
        parallel.wait_for_processes("uploaded")
