"""Reads the bytes of samples from local shards, the cache, or object stores."""

import functools
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from groupvit_jax.data.storage import objects
from groupvit_jax.data.storage.cache import ObjectCache
from groupvit_jax.data.storage.objects import StoredObject


class Span(NamedTuple):
    """The byte range of a sample's members, which are adjacent in the shard."""

    start: int
    num_bytes: int


class Members(NamedTuple):
    """Offset and size of each of a sample's members in the shard; size -1 for a missing member."""

    offsets: list[int]
    sizes: list[int]

    @property
    def span(self) -> Span:
        """Return the range from the first to the last member of the sample."""
        present = [part for part in zip(self.offsets, self.sizes, strict=True) if part[1] >= 0]
        if not present:
            return Span(0, 0)
        start = min(offset for offset, _ in present)
        return Span(start, max(offset + size for offset, size in present) - start)


def read_samples(
    shards: Sequence[str | StoredObject], samples: Sequence[Members], cache: ObjectCache | None
) -> Iterator[list[bytes | None]]:
    """Yield the contents of each sample's members; None for a missing member.

    Samples on stores that are not cached are requested all at once. Samples of local files are read
    one by one as they are consumed, so that their memory is reused while it is in the processor's
    caches. A truncated local file yields fewer bytes.

    Raises:
      StorageError: an object can't be read.
    """
    stored = iter(_read_stored(shards, samples, cache))
    for shard, members in zip(shards, samples, strict=True):
        if isinstance(shard, str):
            handle = _open_shard(shard)  # keeps it open: the table may drop it during the read
            yield read_members(handle.fd, members)
        else:
            yield _split(next(stored), members)


def read_members(fd: int, members: Members) -> list[bytes | None]:
    """Read a sample from an open file; a truncated file yields fewer bytes."""
    return [
        # Without a position of its own: threads share the descriptor.
        os.pread(fd, size, offset) if size >= 0 else None
        for offset, size in zip(*members, strict=True)
    ]


def _read_stored(
    shards: Sequence[str | StoredObject], samples: Sequence[Members], cache: ObjectCache | None
) -> list[bytes]:
    """Read the spans of samples on object stores."""
    ranges = [
        objects.Range(shard, *members.span)
        for shard, members in zip(shards, samples, strict=True)
        if isinstance(shard, StoredObject)
    ]
    data = [_known(part, cache) for part in ranges]
    missing = [part for part, content in zip(ranges, data, strict=True) if content is None]
    if cache:
        # This time read by range, and whole in the background for the next time; each object once.
        for stored in {part.stored: None for part in missing}:
            cache.fetch_later(stored)
    from_stores = iter(objects.read_ranges(missing) if missing else ())
    return [next(from_stores) if content is None else content for content in data]


def _known(part: objects.Range, cache: ObjectCache | None) -> bytes | None:
    if not part.size:
        return b""
    return cache.read(*part) if cache else None


def _split(data: bytes, members: Members) -> list[bytes | None]:
    start = members.span.start
    return [
        data[offset - start : offset - start + size] if size >= 0 else None
        for offset, size in zip(*members, strict=True)
    ]


class _ShardHandle:
    """A file descriptor that closes with its last reference."""

    def __init__(self, shard: str):
        self.fd = os.open(shard, os.O_RDONLY)

    def __del__(self):
        if hasattr(self, "fd"):
            os.close(self.fd)


# Per process; below the usual limit of 1,024 open files.
_open_shard = functools.lru_cache(maxsize=256)(_ShardHandle)
