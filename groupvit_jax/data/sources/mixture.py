"""Joins sources, and defines the endless shuffled order in which training visits samples."""

import bisect
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from groupvit_jax.data.sources.samples import (
    BatchSource,
    BrokenSampleError,
    Sample,
    Source,
)

Fields = Mapping[str, Any]
_NUM_ROUNDS = 6
_UINT64 = 2**64 - 1


class MixedSource:
    """The concatenation of several sources."""

    def __init__(self, sources: Sequence[Source]):
        """Concatenate one or more sources."""
        self._sources = list(sources)
        self.sizes = [len(source) for source in sources]
        self._ends = list(itertools.accumulate(self.sizes))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        source, row = self.find(index)
        return self._sources[source][row]

    def read_many(self, indices: Sequence[int]) -> "Iterator[Sample | BrokenSampleError]":
        """Yield samples, with batched reads from sources that support them."""
        found = [self.find(index) for index in indices]
        rows: dict[int, list[int]] = {}
        for source, row in found:
            rows.setdefault(source, []).append(row)
        samples = {source: _read(self._sources[source], rows[source]) for source in rows}
        for source, _ in found:
            # A source yields its rows in their order, so its next one is the one wanted.
            yield next(samples[source])

    def locate(self, index: int) -> str:
        """Describe the location of a sample, for messages."""
        source, row = self.find(index)
        return self._sources[source].locate(row)

    def find(self, index: int) -> tuple[int, int]:
        """Return the source of sample `index` and the sample's index in it."""
        source = bisect.bisect_right(self._ends, index)
        return source, index - self.start(source)

    def start(self, source: int) -> int:
        """Return the index of a source's first sample."""
        return self._ends[source] - self.sizes[source]


def _read(source: Source, rows: Sequence[int]) -> "Iterator[Sample | BrokenSampleError]":
    if isinstance(source, BatchSource):
        yield from source.read_many(rows)
        return
    for row in rows:
        try:
            yield source[row]
        except BrokenSampleError as error:
            yield error


class ExampleOrder:
    """The sample at each position of the endless sequence, as a pure function of the seed.

    Without weights, an epoch is a shuffle of all samples of all sources. With weights, every
    stretch of the sequence draws from the sources in these proportions (to within one sample per
    source), and each source is reshuffled whenever it is exhausted.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float] | None, seed: int):
        """Define the sequence.

        Args:
          sizes: number of samples of each source.
          weights: positive, of any sum; None mixes in proportion to size.
          seed: not negative.
        """
        if weights is None:
            sizes, weights = [sum(sizes)], [1.0]
        self._seed = seed
        self._sizes = list(sizes)
        self._starts = [0, *itertools.accumulate(sizes[:-1])]
        # Share of source i in what the sources before it leave.
        self._shares = [w / sum(weights[i:]) for i, w in enumerate(weights)]

    def __getitem__(self, position: int) -> int:
        source, row = self._draw(position)
        epoch, row_of_epoch = divmod(row, self._sizes[source])
        keys = _round_keys(self._seed, source, epoch)
        return self._starts[source] + permute(row_of_epoch, self._sizes[source], keys)

    def _draw(self, position: int) -> tuple[int, int]:
        """Return the source at a position and the number of earlier draws from it."""
        for source, share in enumerate(self._shares[:-1]):
            # A source takes the positions at which `int(position * share)` steps up; those that
            # it leaves are numbered anew, without gaps, for the next one.
            before = int(position * share)
            if int((position + 1) * share) > before:
                return source, before
            position -= before
        return len(self._shares) - 1, position


def open_mixture(
    sources: Mapping[str, Fields], seed: int, open_source: Callable[[str, Fields], Source]
) -> tuple[MixedSource, ExampleOrder]:
    """Open several sources as one, with the order in which the seed visits its samples.

    Args:
      sources: `config.data.sources`, the fields of each source by its name; `weight` is used here.
      seed: of the order.
      open_source: opens a source by its name and its fields.

    Raises:
      ValueError: there is no source, or some have no weight or one that isn't positive.
    """
    if not sources:
        raise ValueError("config.data.sources: empty, expected at least one set")
    # Sorted, so that the order of the examples doesn't depend on how the configuration was built.
    sources = dict(sorted(sources.items()))
    source = MixedSource([open_source(*named) for named in sources.items()])
    return source, ExampleOrder(source.sizes, _weights(sources), seed)


def _weights(sources: Mapping[str, Fields]) -> list[float] | None:
    weights = {name: fields.get("weight") for name, fields in sources.items()}
    given = {name: weight for name, weight in weights.items() if weight is not None}
    if not given:
        return None
    for name, weight in weights.items():
        # Not `<= 0`, which lets NaN pass.
        if not (given.get(name, 0.0) > 0):
            raise ValueError(
                f"config.data.sources.{name}.weight: {weight} found, expected a positive number, "
                "in all sources or in none"
            )
    return [float(weight) for weight in given.values()]


def permute(index: int, size: int, keys: tuple[int, ...]) -> int:
    """Apply a keyed pseudo-random permutation of range(size) to an index.

    A Feistel network permutes the next power of four; values outside the range are permuted again
    until they fall inside (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). No
    shuffled list of all samples has to be held in memory. Grain's `index_shuffle` works the same
    way, but is not a permutation for sizes 4^k + 1, and takes a millisecond per index for small
    sizes.
    """
    half_bits = max(1, -(-(size - 1).bit_length() // 2))
    mask = (1 << half_bits) - 1
    while True:
        left, right = index >> half_bits, index & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        index = left << half_bits | right
        if index < size:
            return index


def _mix(x: int) -> int:
    """Mix 64 bits by the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _UINT64
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _UINT64
    return x ^ x >> 31


@functools.lru_cache(maxsize=64)
def _round_keys(*seeds: int) -> tuple[int, ...]:
    return tuple(np.random.SeedSequence(seeds).generate_state(_NUM_ROUNDS, np.uint64).tolist())
