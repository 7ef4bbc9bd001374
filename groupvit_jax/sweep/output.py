"""Where a sweep's files are: in a folder, or on a bucket with a local copy of the small ones.

On a bucket each trial is a run of its own there, which `BucketWorkdir` keeps. This process keeps
the rest: the sweep, and the record and the log of each trial. Records are uploaded as soon as they
change, logs every half a minute. Of the trials' runs it copies the metrics, for the table, and what
the checks before a start read.
"""

import contextlib
import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from groupvit_jax.data.storage import objects
from groupvit_jax.data.storage.objects import StoredObject, is_remote
from groupvit_jax.data.storage.retries import StorageError
from groupvit_jax.runs.bucket.mirror import (
    THREADS,
    cache_folder,
    download_steps,
    fetch,
    state_of,
    steps_among,
)
from groupvit_jax.runs.checkpoints import TOKENIZER
from groupvit_jax.runs.layout import (
    CHECKPOINTS,
    CONFIG_FILE,
    METRICS_FILE,
    SWEEP_FILE,
    TRIAL_FILE,
    TRIAL_LOCK_FILE,
    TRIAL_LOG_FILE,
    TRIAL_SETTINGS_FILE,
)
from groupvit_jax.runs.lock import RunLock
from groupvit_jax.runs.workdir import check_writable
from groupvit_jax.sweep.cluster import SUBMISSIONS_FILE

SECONDS = 30  # between two uploads of the logs, and two copies of the metrics
_WRITTEN = (SWEEP_FILE, SUBMISSIONS_FILE)
_WRITTEN_OF_TRIALS = (TRIAL_FILE, TRIAL_LOG_FILE, TRIAL_SETTINGS_FILE)
_READ_OF_TRIALS = (CONFIG_FILE, METRICS_FILE)


class SweepOutput:
    """The folder of a sweep.

    Attributes:
      folder: the local folder.
      name: of the folder for users and commands: its path or, on a bucket, the URL.
    """

    def __init__(self, folder: Path, name: str = "") -> None:
        """Take the folder."""
        self.folder, self.name = folder, name or str(folder)

    def check_writable(self) -> None:
        """Raise ValueError if nothing can be written here."""
        check_writable(self.folder, "--output")

    def upload(self, *, trial: str = "") -> None:
        """Upload what has changed; in a folder, this does nothing.

        Args:
          trial: upload the records of this one only, those of others being written elsewhere.

        Raises:
          StorageError: the bucket can't be written.
        """

    def finish(self, *, trial: str = "") -> None:
        """Upload the logs too, and copy the trials' metrics; see `upload`."""


class BucketOutput(SweepOutput):
    """The folder of a sweep on a bucket."""

    def __init__(self, folder: Path, url: str, check: Callable[[], None] = lambda: None) -> None:
        """Download what the bucket has.

        Args:
          folder: the local folder.
          url: of the sweep, without a slash at the end.
          check: raises if the sweep is no longer this process's; called before an upload.

        Raises:
          ValueError: the bucket can't be read.
        """
        super().__init__(folder, url)
        self._check = check
        self._uploaded: dict[str, tuple[int, int]] = {}  # size and time of the files
        self._metrics: dict[str, StoredObject] = {}
        self._last = time.monotonic()
        try:
            self._download()
        except StorageError as error:
            raise ValueError(f"--output={url}: can't be read ({error})") from error

    def check_writable(self) -> None:
        """Leave it to the first upload, which comes before any trial starts."""

    def upload(self, *, trial: str = "") -> None:
        """See `SweepOutput`; every half a minute as `finish`."""
        if time.monotonic() - self._last >= SECONDS:
            self.finish(trial=trial)
        else:
            self._upload(trial, logs=False)

    def finish(self, *, trial: str = "") -> None:
        """See `SweepOutput`."""
        self._last = time.monotonic()
        self._upload(trial, logs=True)
        self._copy_metrics(objects.find_objects(self.name))

    def _upload(self, trial: str, logs: bool) -> None:
        changed = {}
        for path in self._written(trial or "*"):
            name = path.relative_to(self.folder).as_posix()
            state = state_of(path)
            if self._uploaded.get(name) != state and (logs or path.name != TRIAL_LOG_FILE):
                changed[name] = state
        if not changed:
            return
        self._check()
        with ThreadPoolExecutor(THREADS) as threads:
            list(
                threads.map(lambda n: objects.upload(self.folder / n, f"{self.name}/{n}"), changed)
            )
        self._uploaded |= changed

    def _written(self, trial: str) -> Iterator[Path]:
        for name in _WRITTEN:
            yield from self.folder.glob(name)
        for name in _WRITTEN_OF_TRIALS:
            yield from self.folder.glob(f"{trial}/{name}")

    def _download(self) -> None:
        found = objects.find_objects(self.name)
        written = {
            name: stored
            for name, stored in found.items()
            if _is_among(name, _WRITTEN, 0) or _is_among(name, _WRITTEN_OF_TRIALS, 1)
        }
        self._clear()
        fetch(self.folder, written)
        self._uploaded = {name: state_of(self.folder / name) for name in written}
        self._copy_metrics(found)
        fetch(self.folder, {n: s for n, s in found.items() if _is_among(n, (CONFIG_FILE,), 1)})
        for trial in {name.partition("/")[0] for name in found if f"/{CHECKPOINTS}/" in name}:
            files = {
                name.removeprefix(f"{trial}/"): stored
                for name, stored in found.items()
                if name.startswith(f"{trial}/")
            }
            download_steps(self.folder / trial, steps_among(files), (TOKENIZER,))

    def _clear(self) -> None:
        """Remove what a process that was killed has left, but locks and compiled programs."""
        for path in self.folder.glob("[!.]*"):
            for inner in path.glob("*") if path.is_dir() else [path]:
                if inner.is_dir():
                    shutil.rmtree(inner)
                elif inner.name != TRIAL_LOCK_FILE:
                    inner.unlink()

    def _copy_metrics(self, found: dict[str, StoredObject]) -> None:
        metrics = {name: s for name, s in found.items() if _is_among(name, (METRICS_FILE,), 1)}
        fetch(self.folder, {n: s for n, s in metrics.items() if self._metrics.get(n) != s})
        self._metrics = metrics


def _is_among(name: str, files: tuple[str, ...], depth: int) -> bool:
    return name.count("/") == depth and name.rpartition("/")[2] in files


@contextlib.contextmanager
def open_output(output: str, runs_here: bool) -> Iterator[SweepOutput]:
    """Context of a sweep's folder.

    Args:
      output: its path, or a URL.
      runs_here: whether the trials run below this process, which then has a bucket's sweep to
        itself.

    Raises:
      ValueError: the bucket can't be read, or another process runs the sweep there.
    """
    if not is_remote(output):
        yield SweepOutput(Path(output).absolute())
        return
    url = output.rstrip("/")
    with contextlib.ExitStack() as stack:
        if not runs_here:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="groupvit-")))
            yield BucketOutput(folder, url)
            return
        lock = RunLock(url, flag="--output")
        try:
            stack.enter_context(lock)
        except StorageError as error:
            raise ValueError(f"--output={url}: can't be written ({error})") from error
        # Kept from one start to the next: a trial of a process that was killed may still hold the
        # lock of its folder while it saves, and compiled programs lie there.
        folder = cache_folder() / f"sweep-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
        yield BucketOutput(folder, url, lock.check)
