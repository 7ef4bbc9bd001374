"""Several sources as one, and the endless shuffled order in which training visits its samples."""

import bisect
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from ml_collections import ConfigDict

from groupvit_jax.data.sources.pairs import BatchSource, BrokenSampleError, Sample, Source

_NUM_ROUNDS = 6
_UINT64 = 2**64 - 1


class MixedSource:
    """Several sources end to end: sample i of the mixture lies in one of them."""

    def __init__(self, sources: Sequence[Source]):
        """Joins at least one source."""
        self._sources = list(sources)
        self.sizes = [len(source) for source in sources]
        self._ends = list(itertools.accumulate(self.sizes))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        source, row = self.find(index)
        return self._sources[source][row]

    def read_many(self, indices: Sequence[int]) -> "Iterator[Sample | BrokenSampleError]":
        """Yields samples, those of one source read at once where that is sooner."""
        found = [self.find(index) for index in indices]
        rows: dict[int, list[int]] = {}
        for source, row in found:
            rows.setdefault(source, []).append(row)
        samples = {source: _read(self._sources[source], rows[source]) for source in rows}
        for source, _ in found:
            yield next(samples[source])

    def locate(self, index: int) -> str:
        """Says where the sample lies, for messages."""
        source, row = self.find(index)
        return self._sources[source].locate(row)

    def find(self, index: int) -> tuple[int, int]:
        """Returns which source sample `index` lies in, and where in it."""
        source = bisect.bisect_right(self._ends, index)
        return source, index - self.start(source)

    def start(self, source: int) -> int:
        """Returns the index of a source's first sample."""
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
    """Which sample stands at each position of the endless sequence; a pure function of the seed.

    Without weights, an epoch is a shuffle of all samples of all sources. With weights, every
    stretch of the sequence draws from the sources in these proportions (to within one sample per
    source), each of them shuffled anew whenever it is used up.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float] | None, seed: int):
        """Describes the sequence.

        Args:
          sizes: number of samples of each source.
          weights: positive, of any sum; None mixes by size.
          seed: not negative.
        """
        if weights is None:
            sizes, weights = [sum(sizes)], [1.0]
        self._seed = seed
        self._sizes = list(sizes)
        self._starts = [0, *itertools.accumulate(sizes[:-1])]
        # Of what the sources before it leave, source i takes this share.
        self._shares = [w / sum(weights[i:]) for i, w in enumerate(weights)]

    def __getitem__(self, position: int) -> int:
        source, row = self._draw(position)
        epoch, row_of_epoch = divmod(row, self._sizes[source])
        keys = _round_keys(self._seed, source, epoch)
        return self._starts[source] + permute(row_of_epoch, self._sizes[source], keys)

    def _draw(self, position: int) -> tuple[int, int]:
        """Returns the source at a position and how often it has been drawn before."""
        for source, share in enumerate(self._shares[:-1]):
            before = int(position * share)
            if int((position + 1) * share) > before:
                return source, before
            position -= before
        return len(self._shares) - 1, position


def open_mixture(
    config: ConfigDict, open_source: Callable[[str, ConfigDict], Source]
) -> tuple[MixedSource, ExampleOrder]:
    """Opens `config.data.sources` as one, with the order in which `config.seed` visits it.

    Args:
      config: the whole configuration.
      open_source: opens a source by its name and its fields.

    Raises:
      ValueError: there is no source, or some have no weight or one that isn't positive.
    """
    source = MixedSource([open_source(*named) for named in _named_sources(config.data)])
    return source, ExampleOrder(source.sizes, _weights(config.data), config.seed)


def _named_sources(data_config: ConfigDict) -> list[tuple[str, ConfigDict]]:
    if not data_config.sources:
        raise ValueError("config.data.sources is empty: name at least one set")
    # Sorted, so that the order of the examples doesn't hang on how a config was put together.
    return sorted(data_config.sources.items())


def _weights(data_config: ConfigDict) -> list[float] | None:
    weights = {name: fields.get("weight") for name, fields in _named_sources(data_config)}
    given = {name: weight for name, weight in weights.items() if weight is not None}
    if not given:
        return None
    for name, weight in weights.items():
        if not (given.get(name, 0.0) > 0):
            raise ValueError(
                f"config.data.sources.{name}.weight={weight}: expected a positive number, "
                "in all sources or in none"
            )
    return [float(weight) for weight in given.values()]


def permute(index: int, size: int, keys: tuple[int, ...]) -> int:
    """Returns where a keyed pseudo-random permutation of range(size) sends an index.

    A Feistel network permutes the next power of four; what falls outside is permuted again until
    it falls inside (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). So no
    shuffled list of all samples is held. (Grain's shuffle does the same, but it is no permutation
    for sizes 4^k + 1, and takes a millisecond an index for small sizes.)
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
    """The finaliser of SplitMix64."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _UINT64
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _UINT64
    return x ^ x >> 31


@functools.lru_cache(maxsize=64)
def _round_keys(*seeds: int) -> tuple[int, ...]:
    return tuple(np.random.SeedSequence(seeds).generate_state(_NUM_ROUNDS, np.uint64).tolist())
