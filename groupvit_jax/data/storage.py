"""Objects on stores that fsspec speaks to (s3://, gs://, ...): listing, ranges, retries, errors.

Nothing here holds a connection or an event loop of its own: fsspec keeps one of each per process,
so what refers to objects can be pickled to worker processes, spawned or forked.
"""

import errno
import io
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import fsspec
from absl import logging

T = TypeVar("T")

_LISTING_THREADS = 16
_BUCKET_SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs")
_CONNECTIONS = 64  # of a process to an S3 store; botocore's default of 10 would be the limit
_READER_BLOCK = 2**23
_READER_BLOCKS = 4  # on their way at once
_LONGEST_MESSAGE = 300
_SECONDS_BETWEEN_REPORTS = 60.0
# What identifies an object's content, the best first; stores report different ones.
_VERSION_FIELDS = (
    "generation", "ETag", "etag", "md5Hash", "content_md5", "crc32c",
    "LastModified", "last_modified", "updated", "mtime", "created",
)  # fmt: skip
_PERMANENT_TYPES = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    FileExistsError,
    ImportError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    NotImplementedError,
)
_PERMANENT_ERRNOS = {
    errno.EINVAL,
    errno.EPERM,
    errno.EACCES,
    errno.ENOENT,
    errno.ENOSYS,
    errno.ENAMETOOLONG,
    errno.EMSGSIZE,
    getattr(errno, "EREMCHG", errno.ENOENT),  # s3fs: the bucket is in another region
}
_TRANSIENT_STATUS = (408, 425, 429)  # of 400 to 499


class StorageError(RuntimeError):
    """An object can't be read; the message names it and says what the store answered."""


class StoredObject(NamedTuple):
    """An object as its store described it.

    Attributes:
      url: with its scheme.
      size: in bytes, as declared.
      version: changes with the content.
    """

    url: str
    size: int
    version: str


class Range(NamedTuple):
    """A part of an object, in bytes."""

    stored: StoredObject
    offset: int
    size: int


@dataclass(frozen=True)
class Retry:
    """How often a transient error is met with another attempt, and how long after.

    The wait before attempt n + 1 is drawn from [0, min(longest, first 2^(n-1))], so that many
    readers that failed together don't come back together ("full jitter", Brooker 2015).
    """

    attempts: int = 8
    first_seconds: float = 1.0
    longest_seconds: float = 30.0
    sleep: Callable[[float], None] = time.sleep
    draw: Callable[[], float] = random.random

    def wait(self, attempt: int) -> None:
        """Sleeps after the failed attempt number `attempt`, counted from 1."""
        bound = min(self.longest_seconds, self.first_seconds * 2 ** (attempt - 1))
        self.sleep(self.draw() * bound)


RETRY = Retry()


def is_remote(path: str) -> bool:
    """Returns whether a path is a URL."""
    return "://" in path


def expand_glob(url: str) -> list[str]:
    """Returns the URLs of the objects that match, sorted.

    Raises:
      StorageError: the store can't be listed, or has no such bucket.
    """

    def list_matches() -> list[str]:
        filesystem, path = _split(url)
        return [filesystem.unstrip_protocol(match) for match in sorted(filesystem.glob(path))]

    matches = _retried(list_matches, url)
    scheme, _, path = url.partition("://")
    if not matches and scheme in _BUCKET_SCHEMES:  # a missing bucket looks like an empty one
        bucket = f"{scheme}://{path.partition('/')[0]}"
        _retried(lambda: _split(bucket)[0].info(bucket), bucket)
    return matches


def list_folder(url: str) -> dict[str, StoredObject]:
    """Returns the objects right in a folder by their names.

    Raises:
      StorageError: the store can't be listed.
    """

    def list_objects() -> dict[str, StoredObject]:
        filesystem, path = _split(url.rstrip("/"))
        infos = [info for info in filesystem.ls(path, detail=True) if info["type"] == "file"]
        return {
            info["name"].rpartition("/")[2]: _described(
                filesystem.unstrip_protocol(info["name"]), info
            )
            for info in infos
        }

    return _retried(list_objects, url)


def describe(urls: Sequence[str]) -> list[StoredObject]:
    """Returns size and version of each object.

    Raises:
      StorageError: one of them can't be looked up; its cause says whether it is missing.
    """

    def look_up(url: str) -> StoredObject:
        filesystem, path = _split(url)
        return _described(url, filesystem.info(path))

    with ThreadPoolExecutor(_LISTING_THREADS) as pool:
        return list(pool.map(lambda url: _retried(lambda: look_up(url), url), urls))


def _described(url: str, info: dict[str, Any]) -> StoredObject:
    if info.get("type") != "file" or not isinstance(info.get("size"), int) or info["size"] < 0:
        raise FileNotFoundError("no object of this name whose size is known")
    version = next((str(info[name]) for name in _VERSION_FIELDS if info.get(name)), "")
    return StoredObject(url, info["size"], version)


def read_ranges(ranges: Sequence[Range]) -> list[bytes]:
    """Reads parts of objects, all of them on their way at once.

    Raises:
      StorageError: a part can't be read, or not after `RETRY.attempts` attempts.
    """
    parts = _retried_each(
        lambda wanted: _request([ranges[i] for i in wanted]),
        [part.stored.url for part in ranges],
    )
    _meter.add(num_ranges=len(parts), num_bytes=sum(map(len, parts)))
    return parts


def _request(ranges: Sequence[Range]) -> list[bytes | Exception]:
    """Asks once for each part."""
    results: list[bytes | Exception] = [b""] * len(ranges)
    places: dict[Any, list[int]] = {}
    for place, part in enumerate(ranges):
        try:
            if part.size:
                places.setdefault(_split(part.stored.url)[0], []).append(place)
        except Exception as error:  # also of a store's library that can't be imported
            results[place] = error
    for filesystem, wanted in places.items():
        parts = [ranges[place] for place in wanted]
        found = _request_from(filesystem, parts)
        for place, part, result in zip(wanted, parts, found, strict=True):
            if isinstance(result, bytes) and len(result) != part.size:
                result = OSError(f"{len(result)} of {part.size} bytes came")
            results[place] = result
    return results


def _request_from(filesystem: Any, parts: Sequence[Range]) -> Sequence[bytes | Exception]:
    paths = [_split(part.stored.url)[1] for part in parts]
    starts = [part.offset for part in parts]
    ends = [part.offset + part.size for part in parts]
    try:
        return filesystem.cat_ranges(paths, starts, ends, on_error="return")
    except Exception as error:  # stores raise what they like; `is_transient` tells them apart
        return [error] * len(parts)


def _split(url: str) -> tuple[Any, str]:
    """Returns the file system, one per process and store, and the path in it."""
    options: dict[str, Any] = {"use_listings_cache": False}  # an old listing is an old version
    is_s3 = url.startswith(("s3://", "s3a://"))
    if is_s3:
        given = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        config = {"max_pool_connections": _CONNECTIONS, **given}
        # One place retries: `Retry`, which waits longer and says so.
        options["config_kwargs"] = config | {"retries": {"total_max_attempts": 1}}
    filesystem, path = fsspec.core.url_to_fs(url, **options)
    if is_s3:
        filesystem.retries = 1
    return filesystem, path


def _retried(function: Callable[[], T], url: str) -> T:
    def attempt(wanted: Sequence[int]) -> list[T | Exception]:
        del wanted
        try:
            return [function()]
        except Exception as error:  # `is_transient` tells them apart
            return [error]

    return _retried_each(attempt, [url])[0]


def _retried_each(
    request: Callable[[Sequence[int]], Sequence[T | Exception]], urls: Sequence[str]
) -> list[T]:
    """Repeats `request` with those of the places 0, 1, ... that failed for a while.

    Raises:
      StorageError: a permanent error, or a transient one at the last attempt.
    """
    found: dict[int, T] = {}
    missing = list(range(len(urls)))
    for attempt in range(1, RETRY.attempts + 1):
        errors: dict[int, Exception] = {}
        for place, result in zip(missing, request(missing), strict=True):
            if not isinstance(result, Exception):
                found[place] = result
            elif is_transient(result):
                errors[place] = result
            else:
                raise StorageError(f"{urls[place]}: {_message(result)}") from result
        missing = list(errors)
        if not missing:
            break
        url, error = urls[missing[0]], errors[missing[0]]
        if attempt == RETRY.attempts:
            raise StorageError(
                f"{url}: {_message(error)} (the last of {attempt} attempts)"
            ) from error
        message = "%s: %s; attempt %d of %d failed for %d of %d reads"
        counts = (attempt, RETRY.attempts, len(missing), len(urls))
        logging.warning(message, url, _message(error), *counts)
        _meter.add(num_retries=len(missing))
        RETRY.wait(attempt)
    return [found[place] for place in range(len(urls))]


def is_transient(error: BaseException) -> bool:
    """Returns whether the same request may succeed later.

    Stores' libraries raise errors of their own beside Python's: what isn't known to be permanent
    (missing, forbidden, refused as wrong) is worth another attempt.
    """
    if isinstance(error, _PERMANENT_TYPES) or "Credentials" in type(error).__name__:
        return False
    if isinstance(error, OSError) and error.errno in _PERMANENT_ERRNOS:
        return False
    if str(error).startswith("Forbidden"):  # gcsfs has no type for it
        return False
    status = _http_status(error)
    return status is None or not 400 <= status < 500 or status in _TRANSIENT_STATUS


def _http_status(error: BaseException) -> int | None:
    for name in ("status", "code", "status_code"):
        value = str(getattr(error, name, ""))
        if value.isdecimal():
            return int(value)
    return None


def _message(error: BaseException) -> str:
    """Returns what an error says, in one line."""
    text = " ".join((getattr(error, "strerror", None) or str(error)).split())
    kind = type(error).__name__
    return f"{kind}: {text}"[:_LONGEST_MESSAGE] if text else kind


class _Meter:
    """Counts what this process has read from stores and tells the log now and then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._last_report = clock()
        self._lock = threading.Lock()
        self.num_bytes = self.num_ranges = self.num_retries = 0

    def add(self, num_bytes: int = 0, num_ranges: int = 0, num_retries: int = 0) -> None:
        with self._lock:
            self.num_bytes += num_bytes
            self.num_ranges += num_ranges
            self.num_retries += num_retries
            due = self._clock() - self._last_report >= _SECONDS_BETWEEN_REPORTS
            if due:
                self._last_report = self._clock()
        if due:
            message = "Read from object stores so far: %.2f GiB in %d ranges, %d retries"
            logging.info(message, self.num_bytes / 2**30, self.num_ranges, self.num_retries)


_meter = _Meter()


class ObjectReader(io.RawIOBase):
    """An object as a file to read from start to end; stretches that are skipped don't travel."""

    def __init__(self, stored: StoredObject):
        """Reads nothing yet."""
        self._stored = stored
        self._position = 0
        self._start, self._data = 0, b""

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def tell(self) -> int:
        """Returns the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves, as `io.IOBase.seek` does."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._stored.size}
        self._position = max(0, base[whence] + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Reads up to the buffer's length; 0 at the end."""
        if not self._start <= self._position < self._start + len(self._data):
            self._load()
        place = self._position - self._start
        data = self._data[place : place + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _load(self) -> None:
        end = min(self._stored.size, self._position + _READER_BLOCKS * _READER_BLOCK)
        self._start = self._position
        self._data = b"".join(read_ranges(split_range(self._stored, self._start, end)))


def split_range(stored: StoredObject, start: int, end: int) -> list[Range]:
    """Returns bytes `start` to `end` of an object as parts that travel at once."""
    return [
        Range(stored, offset, min(_READER_BLOCK, end - offset))
        for offset in range(start, end, _READER_BLOCK)
    ]
