"""A size-bounded local cache of whole objects, shared by all processes and jobs of a machine.

    FOLDER/groupvit_objects/lock              held while entries are added, changed or removed
                            SHA256/           an entry: complete and immutable
                            SHA256.partial/   being downloaded by the process that holds its lock

An entry's name is a hash of its objects' URLs, sizes and versions, so no name from a store becomes
a path, and a changed object is a new entry. Files are created at their full size, so downloads in
progress count against the bound. Eviction only removes folders with such names, and only regular
files inside them.

This is our own code because fsspec's file caches are neither bounded in size nor safe between
processes, and don't detect that an object changed.
"""

import fcntl
import hashlib
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from groupvit_jax.data.storage import objects
from groupvit_jax.data.storage.objects import StoredObject
from groupvit_jax.data.storage.retries import StorageError

logger = logging.getLogger(__name__)

# Entries used this recently are not evicted. A shuffled epoch uses all shards all the time: if one
# could evict another, a data set larger than the cache would be downloaded over and over.
KEEP_SECONDS = 3600.0
_TOUCH_SECONDS = 60.0
_BYTES_AT_ONCE = 2**25
_ENTRY = re.compile(r"[0-9a-f]{64}")
_PARTIAL = ".partial"
_SHARD = "object"


class _Entry(NamedTuple):
    path: Path
    num_bytes: int
    last_use: float


class HeldFolder(NamedTuple):
    """An entry that is locked against eviction while this object lives."""

    path: Path
    lock: "_Lock"


class _Lock:
    """A lock on a file or folder, released with this object or at the end of the process."""

    def __init__(self, path: Path, mode: int):
        """Acquire the lock; with LOCK_NB in `mode`, raise BlockingIOError instead of waiting."""
        self._fd = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(self._fd, mode)
        except BaseException:
            self.release()
            raise

    def is_on(self, path: Path) -> bool:
        """Return whether the locked file is still at this path."""
        try:
            return os.path.samestat(os.fstat(self._fd), os.stat(path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Release the lock."""
        if getattr(self, "_fd", -1) >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self):
        self.release()


class ObjectCache:
    """Keeps whole objects on a local disk; picklable for worker processes.

    A read either hits or misses; a missing object can be fetched in the background. If there is no
    room, objects unused for an hour are evicted, least recently used first. If that doesn't free
    enough, the new object is not cached.
    """

    def __init__(self, folder: str, max_bytes: int, clock: Callable[[], float] = time.time):
        """Create the folder.

        Args:
          folder: may be shared by any number of processes and jobs on a machine.
          max_bytes: upper bound on the size of all entries together.
          clock: seconds, comparable between processes.

        Raises:
          ValueError: the folder can't be created or written to.
        """
        self._arguments = (folder, max_bytes, clock)
        self._max_bytes = max_bytes
        self._clock = clock
        self._root = Path(folder).expanduser().absolute() / "groupvit_objects"
        self._said_full = False
        self._touched: dict[str, float] = {}
        self._asked: set[str] = set()
        self._queue: queue.SimpleQueue[StoredObject] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            (self._root / "lock").touch()
        except OSError as error:
            raise ValueError(
                f"config.data.cache_dir={folder!r}: not writable ({error.strerror}), expected a "
                "folder that this user may create and write to"
            ) from error

    def __reduce__(self):
        # Thread, queue and what was touched belong to one process; the folder is what is shared.
        return ObjectCache, self._arguments

    def read(self, stored: StoredObject, offset: int, size: int) -> bytes | None:
        """Return a part of an object, or None if the object is not cached."""
        key = _key_of({_SHARD: stored})
        try:
            # A link that someone put there would lead out of the cache.
            fd = os.open(self._root / key / _SHARD, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            data = os.pread(fd, size, offset)
        finally:
            os.close(fd)  # an evicted file would keep its space while open
        self._touch(key)
        # An entry that is too short counts as a miss: the store is asked instead.
        return data if len(data) == size else None

    def fetch_later(self, stored: StoredObject) -> None:
        """Fetch the object in the background, at most once per object and process."""
        if stored.url in self._asked:
            return
        self._asked.add(stored.url)
        self._queue.put(stored)
        if self._thread is None:
            self._thread = threading.Thread(target=self._fetch_all, daemon=True)
            self._thread.start()

    def _fetch_all(self) -> None:
        while True:
            self.fetch(self._queue.get())

    def fetch(self, stored: StoredObject) -> Path | None:
        """Return an object's local file, downloading it if it is not cached.

        Returns None, with a log line, if it doesn't fit or can't be downloaded, and if another
        process is downloading it.
        """
        try:
            entry = self._fetch({_SHARD: stored}, wait=False)
        except OSError as error:  # StorageError, or a full disk
            logger.warning("Not kept in %s: %s", self._root, error)
            return None
        return entry and entry / _SHARD

    def fetch_folder(self, files: Mapping[str, StoredObject]) -> HeldFolder:
        """Return a folder with these files, downloading those that are not cached.

        Args:
          files: objects by their names in the folder, which must be plain file names.

        Raises:
          ValueError: a name isn't a plain file name, or the files don't fit.
          StorageError: a file can't be read.
        """
        for name in files:
            if name != os.path.basename(name) or name in ("", ".", "..") or "\0" in name:
                raise ValueError(f"{files[name].url}: {name!r} is not a file name")
        while True:
            path = self._fetch(files, wait=True)
            if path is None:
                wanted = sum(stored.size for stored in files.values())
                raise ValueError(
                    f"{_gib(wanted)} don't fit into the config.data.cache_gib="
                    f"{self._max_bytes / 2**30:g} of {self._root}, beside what was used in the "
                    "last hour"
                )
            try:
                with self._locked():
                    return HeldFolder(path, _Lock(path, fcntl.LOCK_SH))
            except FileNotFoundError:  # evicted in between
                continue

    def _fetch(self, files: Mapping[str, StoredObject], wait: bool) -> Path | None:
        key = _key_of(files)
        while True:
            with self._locked():
                if (self._root / key).is_dir():
                    self._touch(key)
                    return self._root / key
                claim = self._claim(key, {name: stored.size for name, stored in files.items()})
            if isinstance(claim, _Lock):
                return self._download(key, files, claim)
            if claim == "full" or not wait:
                return None
            try:
                _Lock(
                    self._root / (key + _PARTIAL), fcntl.LOCK_SH
                ).release()  # the other download has ended
            except FileNotFoundError:
                continue

    def _claim(self, key: str, sizes: Mapping[str, int]) -> Any:
        """Return the lock of a new partial entry, "busy" or "full"; the caller holds the lock."""
        partial = self._root / (key + _PARTIAL)
        # If its lock is free, the process that was downloading it has ended.
        if partial.exists() and not self._remove(partial):
            return "busy"
        if not self._make_room(sum(sizes.values())):
            if not self._said_full:
                logger.info("%s is full: further objects are read by range", self._root)
                self._said_full = True
            return "full"
        partial.mkdir()
        lock = _Lock(partial, fcntl.LOCK_EX)
        for name, size in sizes.items():
            with (partial / name).open("xb") as file:
                file.truncate(size)
        return lock

    def _download(self, key: str, files: Mapping[str, StoredObject], lock: _Lock) -> Path:
        partial, entry = self._root / (key + _PARTIAL), self._root / key
        try:
            for name, stored in files.items():
                _copy(stored, partial / name)
            # Parts read before and after a change would make a file that never existed.
            now = objects.describe([stored.url for stored in files.values()])
            for before, after in zip(files.values(), now, strict=True):
                if before != after:
                    raise StorageError(f"{before.url}: changed while it was downloaded")
            with self._locked():  # so that `_measure` counts it under exactly one name
                os.replace(partial, entry)
        # An interrupt, too: the partial entry takes up its full size.
        except BaseException:
            with self._locked():
                _unlink(partial)
            raise
        finally:
            lock.release()
        self._touch(key)
        return entry

    def _make_room(self, num_bytes: int) -> bool:
        """Evict entries until `wanted` bytes fit, or none if that can't be reached."""
        if num_bytes > self._max_bytes:
            return False
        for partial in self._folders(_PARTIAL):
            self._remove(partial)  # if its process ended
        entries = [_measure(path) for path in self._folders("")]
        used = sum(_measure(path).num_bytes for path in self._folders(_PARTIAL))
        used += sum(entry.num_bytes for entry in entries)
        old = [entry for entry in entries if self._clock() - entry.last_use > KEEP_SECONDS]
        if used - sum(entry.num_bytes for entry in old) + num_bytes > self._max_bytes:
            return False
        for entry in sorted(old, key=lambda entry: entry.last_use):
            if used + num_bytes <= self._max_bytes:
                break
            if self._remove(entry.path):
                used -= entry.num_bytes
        return used + num_bytes <= self._max_bytes

    def _remove(self, path: Path) -> bool:
        """Remove an entry unless it is held."""
        try:
            lock = _Lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except FileNotFoundError:
            return True
        try:
            if not lock.is_on(path):  # its download has just ended
                return False
            if not path.name.endswith(_PARTIAL):  # a half-removed entry must not look complete
                path = path.rename(path.with_name(path.name + _PARTIAL))
            _unlink(path)
            return True
        finally:
            lock.release()

    def _folders(self, suffix: str) -> Iterator[Path]:
        for item in os.scandir(self._root):
            stem = item.name.removesuffix(_PARTIAL)
            is_wanted = item.name == stem + suffix and _ENTRY.fullmatch(stem)
            if is_wanted and item.is_dir(follow_symlinks=False):
                yield Path(item.path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = _Lock(self._root / "lock", fcntl.LOCK_EX)
        try:
            yield
        finally:
            lock.release()

    def _touch(self, key: str) -> None:
        now = self._clock()
        # Once a minute is enough, or every read of a sample would also be a write.
        if now - self._touched.get(key, -_TOUCH_SECONDS) < _TOUCH_SECONDS:
            return
        self._touched[key] = now
        try:
            os.utime(self._root / key, (now, now))
        except FileNotFoundError:
            self._touched.pop(key, None)  # evicted after an hour without use


def make_cache(folder: str, gib: float) -> ObjectCache | None:
    """Return the cache of `config.data.cache_dir` and `.cache_gib`; None without a folder.

    Raises:
      ValueError: one of them can't be used.
    """
    if not folder:
        return None
    if not gib > 0:
        raise ValueError(f"config.data.cache_gib={gib}: expected a positive number of GiB")
    if objects.is_remote(folder):
        raise ValueError(f"config.data.cache_dir={folder!r}: a URL found, expected a local folder")
    return ObjectCache(folder, int(gib * 2**30))


def _key_of(files: Mapping[str, StoredObject]) -> str:
    parts = [(name, *stored) for name, stored in sorted(files.items())]
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()


def _copy(stored: StoredObject, path: Path) -> None:
    with path.open("r+b") as file:
        for start in range(0, stored.size, _BYTES_AT_ONCE):
            end = min(stored.size, start + _BYTES_AT_ONCE)
            for part in objects.read_ranges(objects.split_range(stored, start, end)):
                file.write(part)
        # On the disk before the entry gets its name: after a power cut it would look complete.
        file.flush()
        os.fsync(file.fileno())


def _measure(path: Path) -> _Entry:
    files = [item.stat(follow_symlinks=False).st_size for item in os.scandir(path)]
    # The folder's modification time is the last use: `_touch` sets it.
    return _Entry(path, sum(files), path.stat().st_mtime)


def _unlink(folder: Path) -> None:
    for item in list(os.scandir(folder)):
        if item.is_file(follow_symlinks=False):
            os.unlink(item.path)
    try:
        folder.rmdir()
    except OSError as error:
        logger.warning("%s is left, something else lies in it: %s", folder, error)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
