"""What a benchmark is, and how it is opened by its name.

A module of this package adds a set by decorating the function that opens it with `register`.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

from groupvit_jax.data.sources import Source
from groupvit_jax.eval.masks import MaskedSource
from groupvit_jax.eval.zero_shot import LabelledSource


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


Benchmark = SegmentationSet | ClassificationSet | RetrievalSet
Opener = Callable[[Path], Benchmark]
_OPENERS: dict[str, Opener] = {}


def register(name: str) -> Callable[[Opener], Opener]:
    """Makes a function from the data's folder to a set the one that opens the set `name`.

    Raises:
      ValueError: there is a set of that name.
    """
    if name in _OPENERS:
        raise ValueError(f"benchmark {name!r} is registered already")

    def add(opener: Opener) -> Opener:
        _OPENERS[name] = opener
        return opener

    return add


def names() -> tuple[str, ...]:
    """Returns the names of all sets in the alphabet's order."""
    return tuple(sorted(_OPENERS))


def open_benchmark(name: str, data_dir: str | os.PathLike) -> Benchmark:
    """Opens a set; files are listed but no image is read.

    Args:
      name: one of `names()`.
      data_dir: the folder that holds all sets in their customary places, or the set's own folder.

    Raises:
      ValueError: there is no set of that name, or a list or table of it can't be understood.
      FileNotFoundError: its files aren't there; the message says what was expected where.
    """
    if name not in _OPENERS:
        raise ValueError(f"benchmark {name!r} found, expected one of {', '.join(names())}")
    benchmark = _OPENERS[name](Path(data_dir).expanduser())
    if not len(benchmark.source):
        raise FileNotFoundError(f"{name}: no image found in {data_dir}; see docs/benchmarks.md")
    return benchmark
