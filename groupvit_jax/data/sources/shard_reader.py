"""The bytes of samples, wherever their shards lie: on this machine, in the cache, on a store."""

import functools
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from groupvit_jax.data.storage import objects
from groupvit_jax.data.storage.cache import ObjectCache
from groupvit_jax.data.storage.objects import StoredObject


class Span(NamedTuple):
    """Where a sample's members, which are neighbours, lie in the shard."""

    start: int
    num_bytes: int


class Members(NamedTuple):
    """Where each of a sample's members lies in the shard; size -1: the sample has none."""

    offsets: list[int]
    sizes: list[int]

    @property
    def span(self) -> Span:
        """From the first to the last that the sample has."""
        present = [part for part in zip(self.offsets, self.sizes, strict=True) if part[1] >= 0]
        if not present:
            return Span(0, 0)
        start = min(offset for offset, _ in present)
        return Span(start, max(offset + size for offset, size in present) - start)


def read_samples(
    shards: Sequence[str | StoredObject], samples: Sequence[Members], cache: ObjectCache | None
) -> Iterator[list[bytes | None]]:
    """Reads a sample of each shard: its members' contents, None for a missing one.

    Those of objects that aren't in the cache are read all at once, those of local files as they
    are asked for: memory that is used again at once is still in the processor's caches.
    Less comes from a local file that has become shorter.

    Raises:
      StorageError: an object can't be read.
    """
    stored = iter(_read_stored(shards, samples, cache))
    for shard, members in zip(shards, samples, strict=True):
        if isinstance(shard, str):
            handle = _open_shard(shard)  # held: the table may let go of it while it is read
            yield read_members(handle.fd, members)
        else:
            yield _split(next(stored), members)


def read_members(fd: int, members: Members) -> list[bytes | None]:
    """Reads a sample from an open file; less comes from one that ends before."""
    return [
        os.pread(fd, size, offset) if size >= 0 else None
        for offset, size in zip(*members, strict=True)
    ]


def _read_stored(
    shards: Sequence[str | StoredObject], samples: Sequence[Members], cache: ObjectCache | None
) -> list[bytes]:
    """Reads the spans of the samples that lie in objects."""
    ranges = [
        objects.Range(shard, *members.span)
        for shard, members in zip(shards, samples, strict=True)
        if isinstance(shard, StoredObject)
    ]
    data = [_known(part, cache) for part in ranges]
    missing = [part for part, content in zip(ranges, data, strict=True) if content is None]
    if cache:
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
    """A file descriptor that closes when its last reader lets go of it."""

    def __init__(self, shard: str):
        self.fd = os.open(shard, os.O_RDONLY)

    def __del__(self):
        if hasattr(self, "fd"):
            os.close(self.fd)


# Each process opens its own; below the usual limit of 1,024 open files.
_open_shard = functools.lru_cache(maxsize=256)(_ShardHandle)
