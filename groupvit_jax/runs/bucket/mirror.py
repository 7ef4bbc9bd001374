"""A run's folder on a bucket: worked on in a local cache, uploaded in the background.

Orbax, the metrics file and the rest write to a local folder as ever; a thread uploads from there.
So a step never waits for a slow bucket, every file is written by the code whose behaviour at kills
and full disks is tested, and S3 and GCS are the same (Orbax itself can't commit a step to S3, where
a folder can't be renamed). On the bucket, a step's manifest comes last: a step without one was
never complete and is deleted by the next start. Small files come before it, so that the metrics
hold every line up to the step.

Of several processes each has a cache of its own, and all but the first only read: the first saves
the whole state (`Checkpointer`), which at this model's size, less than a gigabyte, takes seconds.
Were each to save its part, Orbax would need a disk that all of them see to complete a step.

The cache is emptied at the start and removed at the end. It holds the steps that are kept, the one
being saved and the one being uploaded.
"""

import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from groupvit_jax.data.storage import objects
from groupvit_jax.data.storage.objects import StoredObject
from groupvit_jax.data.storage.retries import StorageError, is_transient
from groupvit_jax.runs import checkpoints
from groupvit_jax.runs.layout import CHECKPOINTS
from groupvit_jax.runs.manifest import MANIFEST
from groupvit_jax.runs.workdir import WorkdirError

logger = logging.getLogger(__name__)

# A run killed in between loses no more of its metrics than it repeats of its steps.
METRICS_SECONDS = 30
# A bucket that is unreachable for so long ends the run; each request has its own retries before.
GIVE_UP_SECONDS = 600
_POLL_SECONDS = 1.0
THREADS = 16
# Larger files are hard-linked, smaller ones copied: Orbax rewrites some of them in place.
_COPIED_BYTES = 1 << 20
_UPLOADING = ".uploading"
# In the folder of the steps that a rollback has moved, written last: on a bucket, a folder that
# holds nothing doesn't exist.
_ROLLED_BACK = "/DONE"


class BucketWorkdir:
    """Context of a local folder whose content is kept on a bucket.

    Attributes:
      url: of the run, without a slash at the end.
      folder: the local folder.
    """

    def __init__(
        self,
        url: str,
        check: Callable[[], None] = lambda: None,
        process: int = 0,
        metrics_seconds: float = METRICS_SECONDS,
        restore_step: int | None = None,
    ) -> None:
        """Take the URL; nothing is read yet.

        Args:
          url: of the run.
          check: raises if the workdir is no longer this run's; called before anything is uploaded.
          process: number of this process in the run. Each has its own folder, also on one machine;
            process 0 alone uploads and deletes steps.
          metrics_seconds: between two uploads of the small files.
          restore_step: a step that `roll_back` may be called with. Later ones are not downloaded.
        """
        self.url = url.rstrip("/")
        name = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        self.folder = cache_folder() / f"{name}-{process}"
        self._keeps_steps = process == 0
        self._check, self._metrics_seconds = check, metrics_seconds
        self._restore_step = restore_step
        self._sent: dict[str, tuple[int, int]] = {}  # size and time of the small files
        self._steps: set[str] = set()  # on the bucket
        self._last_small = time.monotonic()
        self._error: Exception | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "BucketWorkdir":
        """Download the run, as far as a start needs it.

        Raises:
          ValueError: the bucket can't be read.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        try:
            self._download()
        except StorageError as error:
            raise ValueError(f"--workdir={self.url}: can't be read ({error})") from error
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Upload the rest and remove the cache; errors as for `check`, unless there is one."""
        self._ended.set()
        self._thread.join()
        shutil.rmtree(self.folder, ignore_errors=True)
        if error is None:
            self.check()

    def check(self) -> None:
        """Raise WorkdirError if something could not be uploaded."""
        if self._error is not None:
            what = "the run"
            raise WorkdirError(self.url, what, self._error) from self._error

    def roll_back(self, step: int) -> bool:
        """Make a step the last one, here and on the bucket; see `checkpoints.roll_back`.

        Returns:
          Whether it was done now, and not by an earlier start.

        Raises:
          ValueError: there is no such step, it is damaged, or the bucket can't be written.
        """
        url = f"{self.url}/{CHECKPOINTS}"
        moved = checkpoints.roll_back(self.folder / CHECKPOINTS, step, url)
        if moved is not None and self._keeps_steps:
            target = checkpoints.rolled_back(step)
            try:
                # The last first: each that remains is whole, should this be cut off.
                later = sorted((path.name for path in moved.iterdir()), key=_number, reverse=True)
                for name in later:
                    self._move_step(name, target)
                objects.write_object(f"{url}/{target}{_ROLLED_BACK}", b"")
            except StorageError as error:
                raise ValueError(f"--workdir={self.url}: can't be written ({error})") from error
        return moved is not None

    def _upload_files(self, folder: Path, names: Iterable[Path], url: str) -> None:
        with ThreadPoolExecutor(THREADS) as threads:
            uploads = [
                threads.submit(objects.upload, folder / name, f"{url}/{name.as_posix()}")
                for name in names
            ]
            for done in uploads:
                done.result()

    def _download(self) -> None:
        found = objects.find_objects(self.url)
        steps = steps_among(found)
        small: dict[str, StoredObject] = {}
        for name, stored in found.items():
            # Event files and profiles are only ever written.
            if "/" not in name and not name.startswith(("events.", "run-")):
                small[name] = stored
            elif name.startswith(_step(checkpoints.rolled_back(""))) and name.endswith(
                _ROLLED_BACK
            ):
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        unfinished = [s for s, files in steps.items() if f"{_step(s)}/{MANIFEST}" not in files]
        for step in unfinished:
            files = steps.pop(step)
            if self._keeps_steps:
                self._delete_unfinished(step, files)
        fetch(self.folder, small)
        self._sent = {name: state_of(self.folder / name) for name in small}
        for step in self._later_steps(steps):
            del steps[step]
            (self.folder / _step(step)).mkdir(parents=True)
        self._steps = set(steps)
        download_steps(self.folder, steps)

    def _later_steps(self, steps: Collection[str]) -> list[str]:
        """Return the steps that a rollback will move away: their names are enough for it."""
        step = self._restore_step
        if step is None or str(step) not in steps:
            return []
        if (self.folder / _step(checkpoints.rolled_back(step))).exists():
            return []
        return [later for later in steps if int(later) > step]

    def _delete_unfinished(self, step: str, files: Iterable[str]) -> None:
        logger.info("step %s was not uploaded completely; its rest is deleted", step)
        objects.delete_objects([f"{self.url}/{name}" for name in files])

    def _work(self) -> None:
        failing_since = None
        while True:
            is_last = self._ended.wait(_POLL_SECONDS)
            try:
                self._check()
                self._upload(is_last)
                failing_since = None
            except Exception as error:
                now = time.monotonic()
                failing_since = failing_since or now
                transient = isinstance(error, StorageError) and is_transient(
                    error.__cause__ or error
                )
                if not transient or now - failing_since > GIVE_UP_SECONDS:
                    self._error = error
                    return
                logger.warning("%s: upload failed, tried again (%s)", self.url, error)
                continue
            if is_last:
                return

    def _upload(self, everything: bool) -> None:
        if not self._keeps_steps:
            if everything:  # its part of a profile
                self._upload_small()
            return
        local = {path.name: path for path in self._complete_steps()}
        new = sorted(local.keys() - self._steps, key=_number)
        if everything or new or time.monotonic() - self._last_small >= self._metrics_seconds:
            self._upload_small()
        for step in new:
            self._upload_step(local[step])
        # Listed anew: an upload takes minutes, in which the run goes on. For each step that is not
        # on the bucket yet, the newest of those that the run has deleted stays there.
        kept = {path.name for path in self._complete_steps()}
        deleted = sorted(self._steps - kept, key=_number, reverse=True)
        for step in deleted[len(kept - self._steps) :]:
            self._delete_step(step)

    def _complete_steps(self) -> list[Path]:
        """Return the steps as they were at one moment: at least as many as the run keeps."""
        while True:
            found = list((self.folder / CHECKPOINTS).glob("[0-9]*"))
            complete = [p for p in found if "tmp" not in p.name and (p / MANIFEST).exists()]
            # One that is deleted here made room for one that the list doesn't have.
            if all(path.exists() for path in found):
                return complete

    def _upload_small(self) -> None:
        self._last_small = time.monotonic()
        for path in self._small_files():
            name = path.relative_to(self.folder).as_posix()
            try:
                if self._sent.get(name) != (state := state_of(path)):
                    objects.upload(path, f"{self.url}/{name}")
                    self._sent[name] = state
            except (FileNotFoundError, StorageError):
                # Files are renamed and deleted at any moment; the next round finds what is there.
                if path.exists():
                    raise

    def _small_files(self) -> Iterator[Path]:
        for folder, folders, files in os.walk(self.folder):
            folders[:] = sorted(set(folders) - {CHECKPOINTS, _UPLOADING})
            yield from (Path(folder) / name for name in sorted(files))

    def _upload_step(self, step: Path) -> None:
        """Upload a step from a snapshot, because the run may delete it meanwhile."""
        snapshot = self.folder / _UPLOADING / step.name
        shutil.rmtree(snapshot, ignore_errors=True)
        try:
            shutil.copytree(step, snapshot, copy_function=_link)
        except (FileNotFoundError, shutil.Error):
            return  # deleted by the run
        # Orbax may have been writing its metadata; the next round finds them whole.
        if step.name.isdecimal() and checkpoints.find_damage(snapshot):
            return
        start = time.monotonic()
        names = [path.relative_to(snapshot) for path in snapshot.rglob("*") if path.is_file()]
        names = [name for name in names if name.as_posix() != MANIFEST]
        url = f"{self.url}/{_step(step.name)}"
        self._upload_files(snapshot, names, url)
        objects.upload(snapshot / MANIFEST, f"{url}/{MANIFEST}")
        self._steps.add(step.name)
        shutil.rmtree(snapshot)
        seconds = time.monotonic() - start
        logger.info("step %s is on the bucket (uploaded in %.1f s)", step.name, seconds)

    def _move_step(self, step: str, target: str) -> None:
        url = f"{self.url}/{_step(step)}"
        names = objects.find_objects(url).keys() - {MANIFEST}
        for some in (names, {MANIFEST}):
            copies = {f"{url}/{n}": f"{self.url}/{_step(target)}/{step}/{n}" for n in some}
            objects.copy_objects(copies)
        self._delete_step(step)

    def _delete_step(self, step: str) -> None:
        url = f"{self.url}/{_step(step)}"
        # First what makes it a step: a kill in between leaves one that was never complete.
        objects.delete_objects([f"{url}/{MANIFEST}"])
        objects.delete_objects([f"{url}/{name}" for name in objects.find_objects(url)])
        self._steps.discard(step)


def cache_folder() -> Path:
    """Return the folder of the caches: below XDG_CACHE_HOME or ~/.cache."""
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return user_cache / "groupvit_jax" / "runs"


def steps_among(found: Mapping[str, StoredObject]) -> dict[str, dict[str, StoredObject]]:
    """Return the files of each step among those of a run, by their path in its folder."""
    steps: dict[str, dict[str, StoredObject]] = {}
    for name, stored in found.items():
        step, _, rest = name.removeprefix(f"{CHECKPOINTS}/").partition("/")
        if name.startswith(f"{CHECKPOINTS}/") and rest and step.isdecimal():
            steps.setdefault(step, {})[name] = stored
    return steps


def download_steps(
    folder: Path,
    steps: dict[str, dict[str, StoredObject]],
    items: tuple[str, ...] | None = None,
) -> None:
    """Download the last whole step; of the others the small files, and holes as large as the rest.

    Of older steps only names, metrics and sizes are read (`checkpoints.set_aside_damaged`).

    Args:
      folder: the local folder of the run.
      steps: the files of each step, by their path in the folder.
      items: the items to download of the last step, None for all.
    """
    has_whole = False
    for step in sorted(steps, key=_number, reverse=True):
        files = steps[step]
        wanted = {
            name: stored
            for name, stored in files.items()
            if (items is None or _item(name, step) in (*items, ""))
            and (stored.size <= _COPIED_BYTES or not has_whole)
        }
        for name, stored in files.items():
            if name not in wanted:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                with (folder / name).open("wb") as hole:
                    hole.truncate(stored.size)
        fetch(folder, wanted)
        [name] = [name for name in files if name.endswith(f"{step}/{MANIFEST}")] or [""]
        whole = bool(name) and checkpoints.find_damage((folder / name).parent, items) is None
        has_whole = has_whole or whole


def fetch(folder: Path, files: dict[str, StoredObject]) -> None:
    """Download files into a folder, by their path in it."""
    with ThreadPoolExecutor(THREADS) as threads:
        copies = [
            threads.submit(objects.download, stored, folder / name)
            for name, stored in files.items()
        ]
        for done in copies:
            done.result()


def _step(name: str) -> str:
    return f"{CHECKPOINTS}/{name}"


def _item(name: str, step: str) -> str:
    """Return the item of a step's file; "" for the step's own files."""
    rest = name.removeprefix(f"{CHECKPOINTS}/").removeprefix(f"{step}/")
    return rest.rpartition("/")[0].split("/")[0]


def _number(step: str) -> int:
    number = step.partition(".")[0]
    return int(number) if number.isdecimal() else 0


def state_of(path: Path) -> tuple[int, int]:
    """Return size and time of a file, which differ once it was written."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _link(source: str, target: str) -> None:
    if os.path.getsize(source) > _COPIED_BYTES:
        os.link(source, target)
    else:
        shutil.copyfile(source, target)
