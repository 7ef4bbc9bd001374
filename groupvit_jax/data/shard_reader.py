"""The bytes of samples, wherever their shards lie: on this machine, in the cache, on a store."""

import functools
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from groupvit_jax.data import storage
from groupvit_jax.data.object_cache import ObjectCache
from groupvit_jax.data.storage import StoredObject


class Span(NamedTuple):
    """Where a sample's members, which are neighbours, lie in the shard."""

    start: int
    num_bytes: int


def span_of(offsets: Int[np.ndarray, " P"], sizes: Int[np.ndarray, " P"]) -> Span:
    """Returns the span of the members that a sample has (size -1: it has none)."""
    present = sizes >= 0
    if not present.any():
        return Span(0, 0)
    start = int(offsets[present].min())
    return Span(start, int((offsets + sizes)[present].max()) - start)


def read_spans(
    shards: Sequence[str | StoredObject], spans: Sequence[Span], cache: ObjectCache | None
) -> list[bytes]:
    """Reads a span of each shard, those of objects that aren't in the cache all at once.

    Less comes from a local file that has become shorter.

    Raises:
      StorageError: an object can't be read.
    """
    data: list[bytes | None] = []
    for shard, span in zip(shards, spans, strict=True):
        if not span.num_bytes:
            data.append(b"")
        elif isinstance(shard, str):
            handle = _open_shard(shard)  # held: the table may let go of it while it is read
            data.append(os.pread(handle.fd, span.num_bytes, span.start))
        else:
            data.append(cache.read(shard, *span) if cache else None)
    ranges = [
        storage.Range(shard, *span)
        for shard, span, part in zip(shards, spans, data, strict=True)
        if part is None and isinstance(shard, StoredObject)
    ]
    if cache:
        for stored in {part.stored: None for part in ranges}:
            cache.fetch_later(stored)
    from_stores = iter(storage.read_ranges(ranges) if ranges else ())
    return [next(from_stores) if part is None else part for part in data]


class _ShardHandle:
    """A file descriptor that closes when its last reader lets go of it."""

    def __init__(self, shard: str):
        self.fd = os.open(shard, os.O_RDONLY)

    def __del__(self):
        if hasattr(self, "fd"):
            os.close(self.fd)


# Each process opens its own; below the usual limit of 1,024 open files.
_open_shard = functools.lru_cache(maxsize=256)(_ShardHandle)
