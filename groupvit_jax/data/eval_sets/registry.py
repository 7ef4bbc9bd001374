"""The types of evaluation sets, and the registry that opens them by name.

A module of this package adds a set by decorating its opening function with `register`.
"""

import dataclasses
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from groupvit_jax.data.sources.labelled import LabelledSource
from groupvit_jax.data.sources.masks import MaskedSource
from groupvit_jax.data.sources.samples import Source
from groupvit_jax.data.text.names import first_name
from groupvit_jax.foreign import naming


@dataclasses.dataclass(frozen=True)
class SegmentationSet:
    """Images with masks.

    Attributes:
      source: masked images. With a background class, mask value 0 is the background and class i has
        i + 1; otherwise class i has i. 255 is ignored.
      class_names: names without the background; `a|b` for a class with two names.
      has_background: whether unlabelled pixels are evaluated as background.
      name: what results call the set; "" for the name it is opened by.
      background_threshold: the set's own; None for the protocol's.
      prompts: the set's own templates; () for the protocol's.
      summary: what was found in a set of one's own, in lines.
    """

    source: MaskedSource
    class_names: tuple[str, ...]
    has_background: bool
    name: str = ""
    background_threshold: float | None = None
    prompts: tuple[str, ...] = ()
    summary: str = ""

    @property
    def all_names(self) -> tuple[str, ...]:
        """Return the names of the mask values from 0 on, the first of each class."""
        names = map(first_name, self.class_names)
        return (*(["background"] if self.has_background else []), *names)

    def check_names(self, names: Sequence[str], whose: str) -> None:
        """Raise a ValueError that shows the first difference unless `names` equal `all_names`."""
        # To the longer end: a name too many or too few differs as well.
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
      source: images whose labels are indices into `class_names`.
      class_names: may repeat, as in ImageNet.
    """

    source: LabelledSource
    class_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class RetrievalSet:
    """Images with captions."""

    source: Source


@dataclasses.dataclass(frozen=True)
class ProbeSet:
    """Images with one class each, for training and evaluating a probe.

    Attributes:
      train: the training split.
      source: the evaluation split.
      class_names: names of the labels of both splits.
      probe: the type of probe, "linear_probe" or "knn".
    """

    train: LabelledSource
    source: LabelledSource
    class_names: tuple[str, ...]
    probe: str


Benchmark = SegmentationSet | ClassificationSet | RetrievalSet | ProbeSet
# (folder) -> set, or (folder, split) -> set if there are several splits.
Opener = Callable[..., Benchmark]
_OPENERS: dict[str, tuple[Opener, tuple[str, ...]]] = {}


def register(name: str, splits: tuple[str, ...] = ("val",)) -> Callable[[Opener], Opener]:
    """Register a function that maps the data folder to a set under `name`.

    Args:
      name: name of the set.
      splits: available splits, the evaluated one first; with several, the function receives the
        split as its second argument.

    Raises:
      ValueError: the name is taken.
    """
    if name in _OPENERS:
        raise ValueError(f"benchmark {name!r} is registered already")

    def add(opener: Opener) -> Opener:
        _OPENERS[name] = opener, splits
        return opener

    return add


def names() -> tuple[str, ...]:
    """Return the names of all sets in alphabetical order."""
    return tuple(sorted(_OPENERS))


def open_benchmark(name: str, data_dir: str | os.PathLike, split: str = "") -> Benchmark:
    """Open a set: lists its files, but reads no image.

    Args:
      name: one of `names()`.
      data_dir: the folder that holds all sets in their customary places, or the set's own folder.
      split: by default the one used for evaluation.

    Raises:
      ValueError: the name or split is unknown, or a list or table of the set is invalid.
      FileNotFoundError: files are missing; the message says which were expected where.
    """
    if name not in _OPENERS:
        raise ValueError(f"benchmark {name!r} found, expected one of {', '.join(names())}")
    opener, splits = _OPENERS[name]
    split = split or splits[0]
    if split not in splits:
        raise ValueError(f"benchmark {name}: split {split!r} found, expected one of {splits}")
    arguments = (split,) if len(splits) > 1 else ()
    with naming(data_dir):
        benchmark = opener(Path(data_dir).expanduser(), *arguments)
    if not len(benchmark.source):
        raise FileNotFoundError(f"{name}: no image found in {data_dir}; see docs/benchmarks.md")
    return benchmark
