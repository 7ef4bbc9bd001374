"""Several sources as one, and the endless shuffled order in which training visits its samples."""

import bisect
import itertools
from collections.abc import Sequence

import grain
import numpy as np

from groupvit_jax.data.sources import Sample, Source


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


class ExampleOrder:
    """Which sample stands at each position of the endless sequence; a pure function of the seed.

    Without weights, an epoch is a shuffle of all samples of all sources. With weights, every
    stretch of the sequence draws from the sources in these proportions (to within one sample per
    source), each of them shuffled anew whenever it is used up.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float] | None, seed: int):
        """Prepares the shuffles.

        Args:
          sizes: number of samples of each source.
          weights: positive, of any sum; None mixes by size.
          seed: not negative.
        """
        if weights is None:
            sizes, weights = [sum(sizes)], [1.0]
        ends = list(itertools.accumulate(sizes))
        # Grain derives an epoch's seed by adding: hashed, the seeds of two runs don't meet.
        seeds = np.random.SeedSequence(seed).generate_state(len(sizes)).tolist()
        self._orders = [
            grain.MapDataset.range(end - size, end).shuffle(seed=source_seed).repeat()
            for size, end, source_seed in zip(sizes, ends, seeds, strict=True)
        ]
        # Of what the sources before it leave, source i takes this share.
        self._shares = [w / sum(weights[i:]) for i, w in enumerate(weights)]

    def __getitem__(self, position: int) -> int:
        for order, share in zip(self._orders[:-1], self._shares, strict=False):
            taken = int(position * share)
            if int((position + 1) * share) > taken:
                return order[taken]
            position -= taken
        return self._orders[-1][position]
