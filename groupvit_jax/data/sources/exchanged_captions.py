"""The control of learning from captions: the same images and the same captions, wrongly paired."""

from groupvit_jax.data.sources.pairs import Sample, Source


class ExchangedCaptions:
    """A source whose image i has the captions of the sample half the set away.

    What a model learns from it can't come from what the captions say of their images.
    """

    def __init__(self, source: Source) -> None:
        """Takes a source of two samples at least."""
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        own = self._source[index]
        other = self._source[(index + len(self) // 2) % len(self)]
        return Sample({**other, "image": own["image"], "key": own["key"]})

    def locate(self, index: int) -> str:
        """Says where the image lies, for messages."""
        return self._source.locate(index)
