"""What a benchmark is, and how it is opened by its name.

A module of this package adds a set by decorating the function that opens it with `register`.
"""

import dataclasses
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from groupvit_jax.data.sources.labelled import LabelledSource
from groupvit_jax.data.sources.masks import MaskedSource
from groupvit_jax.data.sources.pairs import Source


@dataclasses.dataclass(frozen=True)
class SegmentationSet:
    """Images with masks.

    Attributes:
      source: its masks hold the classes' numbers. With a background, 0 is the background and class
        i has i + 1, else class i has i; 255 doesn't count.
      class_names: without the background's.
      has_background: whether pixels of no class are evaluated as background.
    """

    source: MaskedSource
    class_names: tuple[str, ...]
    has_background: bool

    @property
    def all_names(self) -> tuple[str, ...]:
        """The names of the masks' values from 0 on."""
        return (*(["background"] if self.has_background else []), *self.class_names)

    def check_names(self, names: Sequence[str], whose: str) -> None:
        """Raises ValueError that shows the first difference, unless `names` are `all_names`."""
        pairs = enumerate(itertools.zip_longest(self.all_names, names))
        different = next((found for found in pairs if found[1][0] != found[1][1]), None)
        if different:
            i, (here, there) = different
            raise ValueError(
                f"{len(self.all_names)} classes found, number {i} {_quoted(here)}, but {whose} has "
                f"{len(names)}, number {i} {_quoted(there)}"
            )


def _quoted(name: str | None) -> str:
    return "missing" if name is None else repr(name)


@dataclasses.dataclass(frozen=True)
class ClassificationSet:
    """Images with one class each.

    Attributes:
      source: its labels are indices into `class_names`.
      class_names: not unique in ImageNet.
    """

    source: LabelledSource
    class_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class RetrievalSet:
    """Images with captions."""

    source: Source


@dataclasses.dataclass(frozen=True)
class ProbeSet:
    """Images with one class each, to learn from and to be measured on.

    Attributes:
      train: to learn from.
      source: to be measured on.
      class_names: what the labels of both index.
      probe: what learns, "linear_probe" or "knn".
    """

    train: LabelledSource
    source: LabelledSource
    class_names: tuple[str, ...]
    probe: str


Benchmark = SegmentationSet | ClassificationSet | RetrievalSet | ProbeSet
# (folder) -> set, or (folder, split) -> set where there are several splits.
Opener = Callable[..., Benchmark]
_OPENERS: dict[str, tuple[Opener, tuple[str, ...]]] = {}


def register(name: str, splits: tuple[str, ...] = ("val",)) -> Callable[[Opener], Opener]:
    """Makes a function from the data's folder to a set the one that opens the set `name`.

    Args:
      name: of the set.
      splits: what it can be asked for, the evaluated one first; a function of several is given
        the split after the folder.

    Raises:
      ValueError: there is a set of that name.
    """
    if name in _OPENERS:
        raise ValueError(f"benchmark {name!r} is registered already")

    def add(opener: Opener) -> Opener:
        _OPENERS[name] = opener, splits
        return opener

    return add


def names() -> tuple[str, ...]:
    """Returns the names of all sets in the alphabet's order."""
    return tuple(sorted(_OPENERS))


def open_benchmark(name: str, data_dir: str | os.PathLike, split: str = "") -> Benchmark:
    """Opens a set; files are listed but no image is read.

    Args:
      name: one of `names()`.
      data_dir: the folder that holds all sets in their customary places, or the set's own folder.
      split: which part of it; by default the one that is evaluated.

    Raises:
      ValueError: there is no set of that name or no such split of it, or a list or table of it
        can't be understood.
      FileNotFoundError: its files aren't there; the message says what was expected where.
    """
    if name not in _OPENERS:
        raise ValueError(f"benchmark {name!r} found, expected one of {', '.join(names())}")
    opener, splits = _OPENERS[name]
    split = split or splits[0]
    if split not in splits:
        raise ValueError(f"benchmark {name}: split {split!r} found, expected one of {splits}")
    arguments = (split,) if len(splits) > 1 else ()
    benchmark = opener(Path(data_dir).expanduser(), *arguments)
    if not len(benchmark.source):
        raise FileNotFoundError(f"{name}: no image found in {data_dir}; see docs/benchmarks.md")
    return benchmark
