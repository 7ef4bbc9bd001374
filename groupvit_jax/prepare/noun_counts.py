"""The most frequent nouns of the captions, for a noun bank (`data.text.noun_bank`)."""

import collections
import json
from collections.abc import Iterable, Mapping, Sequence

from etils import epath

from groupvit_jax.data.text.noun_bank import NOUN_KIND
from groupvit_jax.prepare import files

__all__ = ["NOUNS", "NounCounts", "most_frequent", "read_nouns"]

NOUNS = "nouns.json"  # in the output folder: each noun with its number of captions


class NounCounts:
    """In how many captions each noun occurs, whatever its case."""

    def __init__(self) -> None:
        """Start counting."""
        self._counts: collections.Counter[str] = collections.Counter()

    def add(self, found: Mapping[str, Sequence[Sequence[str]]]) -> None:
        """Count the captions of an image, by their words of each kind."""
        for words in found[NOUN_KIND]:
            self._counts.update({word.casefold() for word in words})

    def to_json(self) -> bytes:
        """Return the counts, in an order of their own."""
        return files.json_bytes(dict(sorted(self._counts.items())))


def most_frequent(parts: Iterable[epath.Path], number: int) -> bytes:
    """Return the content of `nouns.json`: the most frequent first, of equal ones by the alphabet.

    Args:
      parts: what `NounCounts.to_json` wrote of each shard.
      number: of nouns.
    """
    total: collections.Counter[str] = collections.Counter()
    for part in parts:
        total.update(files.read_json(part))
    ranked = sorted(total.items(), key=lambda item: (-item[1], item[0]))
    return (json.dumps(dict(ranked[:number]), ensure_ascii=False, indent=0) + "\n").encode()


def read_nouns(folder: epath.PathLike) -> list[str]:
    """Return the nouns of a folder of shards, the most frequent first."""
    return list(files.read_json(epath.Path(folder) / NOUNS))
