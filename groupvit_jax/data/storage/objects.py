"""Objects on stores supported by fsspec (s3://, gs://): listing, ranged reads, retries, errors.

This module holds no connections or event loops; fsspec keeps one of each per process. References to
objects can therefore be pickled to worker processes, spawned or forked.
"""

import contextlib
import functools
import io
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import fsspec

from groupvit_jax.data.storage.retries import METER, retried, retried_each

_LISTING_THREADS = 16
_BUCKET_SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs")
_CONNECTIONS = 128  # of a process to an S3 store; botocore's default of 10 would be the limit
# A large file is uploaded in parts, several at once. On a slow line, all that are on their way must
# be through before the first times out: s3fs would send 10 of 50 MiB and wait 15 s.
_PART_BYTES, _PARTS_AT_ONCE, _READ_TIMEOUT = 2**23, 4, 60
_READER_BLOCK = 2**23
_READER_BLOCKS = 4  # on their way at once
# Fields that identify an object's content, best first; stores report different ones.
_VERSION_FIELDS = (
    "generation", "ETag", "etag", "md5Hash", "content_md5", "crc32c",
    "LastModified", "last_modified", "updated", "mtime", "created",
)  # fmt: skip


class StoredObject(NamedTuple):
    """An object as described by its store.

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


def is_remote(path: str) -> bool:
    """Return whether a path is a URL."""
    return "://" in path


def expand_glob(url: str) -> list[str]:
    """Return the URLs of the objects that match, sorted.

    Raises:
      StorageError: the store can't be listed, or has no such bucket.
    """

    def list_matches() -> list[str]:
        filesystem, path = _split(url)
        return [filesystem.unstrip_protocol(match) for match in sorted(filesystem.glob(path))]

    matches = retried(list_matches, url)
    scheme, _, path = url.partition("://")
    if not matches and scheme in _BUCKET_SCHEMES:  # a missing bucket looks like an empty one
        bucket = f"{scheme}://{path.partition('/')[0]}"
        retried(lambda: _split(bucket)[0].info(bucket), bucket)
    return matches


def list_folder(url: str) -> dict[str, StoredObject]:
    """Return the objects directly in a folder, by name.

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

    return retried(list_objects, url)


def describe(urls: Sequence[str]) -> list[StoredObject]:
    """Return size and version of each object.

    Raises:
      StorageError: one of them can't be looked up; its cause says whether it is missing.
    """

    def look_up(url: str) -> StoredObject:
        filesystem, path = _split(url)
        return _described(url, filesystem.info(path))

    with ThreadPoolExecutor(_LISTING_THREADS) as pool:
        return list(pool.map(lambda url: retried(lambda: look_up(url), url), urls))


def _described(url: str, info: dict[str, Any]) -> StoredObject:
    if info.get("type") != "file" or not isinstance(info.get("size"), int) or info["size"] < 0:
        raise FileNotFoundError("no object of this name whose size is known")
    version = next((str(info[name]) for name in _VERSION_FIELDS if info.get(name)), "")
    return StoredObject(url, info["size"], version)


def read_objects(urls: Sequence[str]) -> list[bytes | None]:
    """Read small objects completely; None stands for an object that doesn't exist.

    Raises:
      StorageError: an object can't be read.
    """

    def read(url: str) -> bytes | None:
        filesystem, path = _split(url)
        try:
            return filesystem.cat_file(path)
        except FileNotFoundError:
            return None

    with ThreadPoolExecutor(_LISTING_THREADS) as pool:
        return list(pool.map(lambda url: retried(lambda: read(url), url), urls))


def write_object(url: str, content: bytes) -> None:
    """Write a whole object.

    Raises:
      StorageError: it can't be written.
    """

    def write() -> None:
        filesystem, path = _split(url)
        filesystem.pipe_file(path, content)

    retried(write, url)


def create_object(url: str, content: bytes) -> bool:
    """Write an object unless there is one of this name; return whether it is the one written.

    The store decides between writers that come at once (a conditional request). The content must
    tell them apart: an answer may be lost, and the request that repeats it then finds its own.

    Raises:
      StorageError: the store can't be reached.
    """

    def create() -> bool:
        filesystem, path = _split(url)
        try:
            filesystem.pipe_file(path, content, mode="create")
        except Exception:
            # Libraries differ in the error for a name that is taken.
            found = read_objects([url])[0]
            if found is None:
                raise
            return found == content
        return True

    return retried(create, url)


def find_objects(url: str) -> dict[str, StoredObject]:
    """Return every object below a folder, by its path from there.

    Raises:
      StorageError: the store can't be listed.
    """
    url = url.rstrip("/")

    def find() -> dict[str, StoredObject]:
        filesystem, path = _split(url)
        found = filesystem.find(path, detail=True)
        below = path.rstrip("/") + "/"
        files = {
            name.removeprefix(below): info
            for name, info in found.items()
            if name.startswith(below) and info["type"] == "file"
        }
        return {name: _described(f"{url}/{name}", info) for name, info in files.items()}

    return retried(find, url)


def download(stored: StoredObject, path: Path) -> None:
    """Copy an object to a file.

    Raises:
      StorageError: it can't be read.
    """

    def get() -> None:
        filesystem, source = _split(stored.url)
        filesystem.get_file(source, str(path))
        if (found := path.stat().st_size) != stored.size:
            # An error that is retried: the object is whole, its transfer was not.
            raise ConnectionError(f"{found} of {stored.size} bytes came")

    path.parent.mkdir(parents=True, exist_ok=True)
    retried(get, stored.url)


def upload(path: Path, url: str) -> None:
    """Copy a file to an object.

    Raises:
      StorageError: it can't be written.
    """

    def put() -> None:
        filesystem, target = _split(url)
        parts = {"chunksize": _PART_BYTES} if _is_s3(url) else {}
        filesystem.put_file(str(path), target, **parts)

    retried(put, url)


def copy_objects(urls: Mapping[str, str]) -> None:
    """Copy objects within a store, which moves the bytes itself.

    Args:
      urls: the URL of each object to that of its copy.

    Raises:
      StorageError: one can't be copied.
    """

    def copy(pair: tuple[str, str]) -> None:
        filesystem, source = _split(pair[0])
        filesystem.cp_file(source, _split(pair[1])[1])

    with ThreadPoolExecutor(_LISTING_THREADS) as pool:
        list(pool.map(lambda pair: retried(lambda: copy(pair), pair[1]), urls.items()))


def delete_objects(urls: Sequence[str]) -> None:
    """Delete objects; one that is gone is no error.

    Raises:
      StorageError: one can't be deleted.
    """

    def delete(url: str) -> None:
        filesystem, path = _split(url)
        with contextlib.suppress(FileNotFoundError):
            filesystem.rm_file(path)

    with ThreadPoolExecutor(_LISTING_THREADS) as pool:
        list(pool.map(lambda url: retried(lambda: delete(url), url), urls))


def read_ranges(ranges: Sequence[Range]) -> list[bytes]:
    """Read parts of objects concurrently.

    Raises:
      StorageError: a part can't be read, or not after `retries.RETRY.attempts` attempts.
    """
    parts = retried_each(
        lambda wanted: _request([ranges[i] for i in wanted]),
        [part.stored.url for part in ranges],
    )
    METER.add(num_ranges=len(parts), num_bytes=sum(map(len, parts)))
    return parts


def _request(ranges: Sequence[Range]) -> list[bytes | Exception]:
    """Request each part once."""
    results: list[bytes | Exception] = [b""] * len(ranges)
    places: dict[Any, list[int]] = {}
    for place, part in enumerate(ranges):
        try:
            # HTTP has no empty ranges.
            if part.size:
                places.setdefault(_split(part.stored.url)[0], []).append(place)
        except Exception as error:  # also if a store's library can't be imported
            results[place] = error
    # One call a store, which requests all parts at once.
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
    except Exception as error:  # stores raise arbitrary types; `is_transient` classifies them
        return [error] * len(parts)


def _split(url: str) -> tuple[Any, str]:
    """Return the file system (one per process and store) and the path in it."""
    return _split_in(os.getpid(), url)


@functools.lru_cache(maxsize=2**14)
def _split_in(process: int, url: str) -> tuple[Any, str]:
    del process  # a forked process must not use its parent's connections
    options: dict[str, Any] = {
        "use_listings_cache": False
    }  # a cached listing would hide new versions
    if _is_s3(url):
        given = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        config = {"max_pool_connections": _CONNECTIONS, "read_timeout": _READ_TIMEOUT, **given}
        options["max_concurrency"] = _PARTS_AT_ONCE
        # Retries happen in one place, `Retry`, which waits longer and logs them.
        options["config_kwargs"] = config | {"retries": {"total_max_attempts": 1}}
    filesystem, path = fsspec.core.url_to_fs(url, **options)
    if _is_s3(url):
        filesystem.retries = 1  # s3fs has a loop of its own around botocore's
    return filesystem, path


def _is_s3(url: str) -> bool:
    return url.startswith(("s3://", "s3a://"))


class ObjectReader(io.RawIOBase):
    """A file-like view of an object for sequential reading; skipped blocks are not requested."""

    def __init__(self, stored: StoredObject):
        """Open lazily: nothing is read yet."""
        self._stored = stored
        self._position = 0
        self._start, self._data = 0, b""

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Seek as `io.IOBase.seek` does."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._stored.size}
        self._position = max(0, base[whence] + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read up to the buffer's length; 0 at the end."""
        if not self._start <= self._position < self._start + len(self._data):
            self._load()
        place = self._position - self._start
        data = self._data[place : place + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _load(self) -> None:
        end = min(self._stored.size, self._position + _READER_BLOCKS * _READER_BLOCK)
        # From the position, not from a block's edge: what was skipped is not requested.
        self._start = self._position
        self._data = b"".join(read_ranges(split_range(self._stored, self._start, end)))


def split_range(stored: StoredObject, start: int, end: int) -> list[Range]:
    """Split bytes `start` to `end` of an object into parts that are requested concurrently."""
    return [
        Range(stored, offset, min(_READER_BLOCK, end - offset))
        for offset in range(start, end, _READER_BLOCK)
    ]
