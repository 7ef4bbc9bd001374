"""A control for learning from captions: the same images and captions, paired wrongly."""

from groupvit_jax.data.sources.samples import Sample, Source


class ExchangedCaptions:
    """A source that gives image i the captions of the sample half the set away.

    A model trained on it can't learn from what captions say about their images.
    """

    def __init__(self, source: Source) -> None:
        """Wrap a source of at least two samples."""
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        own = self._source[index]
        other = self._source[(index + len(self) // 2) % len(self)]
        exchanged = Sample({**other, "image": own["image"], "key": own["key"]})
        if "superpixels" in own:
            exchanged["superpixels"] = own["superpixels"]
        return exchanged

    def locate(self, index: int) -> str:
        """Describe the location of an image, for messages."""
        return self._source.locate(index)
