"""Taking the workdir for a run, in a folder or on a bucket."""

import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from groupvit_jax import parallel
from groupvit_jax.data.storage.objects import is_remote
from groupvit_jax.data.storage.retries import StorageError
from groupvit_jax.runs import checkpoints
from groupvit_jax.runs.bucket.mirror import BucketWorkdir
from groupvit_jax.runs.layout import CHECKPOINTS
from groupvit_jax.runs.lock import RunLock
from groupvit_jax.runs.workdir import check_writable

logger = logging.getLogger(__name__)


class OpenWorkdir:
    """A workdir that is this run's.

    Attributes:
      name: as it was given, a path or a URL.
      folder: the local folder, of a bucket one for each process.
      checks: functions that raise when the workdir is lost.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        checks: Sequence[Callable[[], None]],
        restore_step: int | None,
    ) -> None:
        """Take the attributes, and the step that `roll_back` goes back to."""
        self.name, self.folder, self.checks = name, folder, checks
        self._restore_step = restore_step

    def roll_back(self) -> None:
        """Go back to the step that was asked for, once; see `checkpoints.roll_back`.

        Raises:
          ValueError: there is no such step, or it is damaged; nothing is moved.
        """
        step = self._restore_step
        if step is None:
            return

        def move() -> None:
            is_new = self._move_later_steps(step)
            moved = f"{self.name.rstrip('/')}/{CHECKPOINTS}/{checkpoints.rolled_back(step)}"
            if is_new:
                logger.warning("going on from step %d; later steps are now in %s", step, moved)
            else:
                logger.warning(
                    "--restore_step=%d was done by an earlier start and isn't repeated; to do it "
                    "again, remove %s", step, moved,
                )  # fmt: skip

        # Processes share the folder: one moves the steps, and all wait until it has.
        parallel.by_first_process(move)

    def _move_later_steps(self, step: int) -> bool:
        return checkpoints.roll_back(self.folder / CHECKPOINTS, step) is not None


class _OpenBucket(OpenWorkdir):
    def __init__(
        self, bucket: BucketWorkdir, checks: Sequence[Callable[[], None]], restore_step: int | None
    ) -> None:
        super().__init__(bucket.url, bucket.folder, [*checks, bucket.check], restore_step)
        self._bucket = bucket

    def roll_back(self) -> None:
        super().roll_back()
        if self._restore_step is not None and jax.process_index() > 0:
            self._bucket.roll_back(self._restore_step)  # in this process's copy

    def _move_later_steps(self, step: int) -> bool:
        return self._bucket.roll_back(step)


def open_workdir(
    workdir: Path | str, stack: contextlib.ExitStack, restore_step: int | None = None
) -> OpenWorkdir:
    """Take the workdir for this run until the stack closes; one of its processes holds the lock.

    Args:
      workdir: the run's folder, or the URL of one on a bucket.
      stack: gives it back.
      restore_step: the step that `OpenWorkdir.roll_back` is to go back to, if any.

    Raises:
      ValueError: the workdir can't be used.
    """
    is_bucket = is_remote(str(workdir))
    place = str(workdir).rstrip("/") if is_bucket else Path(workdir).absolute()
    lock = RunLock(place)
    bucket = BucketWorkdir(str(place), lock.check, jax.process_index(), restore_step=restore_step)

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
        return OpenWorkdir(str(workdir), place, [lock.check], restore_step)
    if jax.process_count() > 1:
        if jax.process_index() > 0:
            # After the first has deleted what was never complete.
            stack.push(_wait_for_uploads)
            stack.enter_context(bucket)
        parallel.wait_for_processes("downloaded")  # before the first changes anything
    return _OpenBucket(bucket, [lock.check], restore_step)


def _wait_for_uploads(kind: type[BaseException] | None, *_: object) -> None:
    """Wait for the other processes at the end of a run; JAX's shutdown gives up after minutes."""
    if kind is None and jax.process_count() > 1:
        parallel.wait_for_processes("uploaded")
