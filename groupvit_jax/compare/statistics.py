"""Means over seeds, and whether they differ by more than seeds do."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special, stats

Values = Float[np.ndarray, " _"]  # samples may differ in size
# Differences that seeds alone make less often than this are called more than noise.
LEVEL = 0.05


class Difference(NamedTuple):
    """How far the means of two samples are apart.

    Attributes:
      value: of the first less that of the second.
      error: the standard error of `value`; NaN where a sample has one value only.
      t: value over error.
      p: of Welch's test: how often samples of one distribution differ by as much or more.
      needed: the difference from which on p is below `LEVEL`, the error being what it is.
    """

    value: float
    error: float
    t: float
    p: float
    needed: float


def mean_and_std(values: Values) -> tuple[float, float]:
    """Returns the mean and the standard deviation of a sample (N - 1); NaN for N of 1."""
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else math.nan


def welch(first: Values, second: Values) -> Difference:
    """Compares two samples, maybe of different variances (Welch, Biometrika 1947).

    Args:
      first: one sample; each value is of a seed of its own.
      second: the other.
    """
    value = float(first.mean() - second.mean())
    nothing = Difference(value, math.nan, math.nan, math.nan, math.nan)
    if min(len(first), len(second)) < 2:
        return nothing
    parts = [float(sample.var(ddof=1)) / len(sample) for sample in (first, second)]
    error = math.sqrt(sum(parts))
    if error == 0.0:  # seeds make no difference at all: their spread says nothing
        return nothing._replace(error=0.0)
    sizes = len(first), len(second)
    freedom = error**4 / sum(part**2 / (size - 1) for part, size in zip(parts, sizes, strict=True))
    t = value / error
    needed = error * float(special.stdtrit(freedom, 1 - LEVEL / 2))
    return Difference(value, error, t, 2 * float(special.stdtr(freedom, -abs(t))), needed)


def holm(p: Sequence[float]) -> list[float]:
    """Returns p corrected for how many there are (Holm, 1979); NaN stays and isn't counted."""
    order = sorted((i for i in range(len(p)) if not math.isnan(p[i])), key=lambda i: p[i])
    corrected, highest = list(p), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, p[i] * (len(order) - rank)))
        corrected[i] = highest
    return corrected


class Level(NamedTuple):
    """The mean over all else of the runs with one value of a setting, and its standard error."""

    value: str
    mean: float
    error: float


class Effect(NamedTuple):
    """What a setting does to the mean over the others.

    Attributes:
      levels: its values.
      range: the highest mean less the lowest.
      p: of that difference (Tukey's studentized range), the variance between seeds being that of
        all samples together; NaN without any.
    """

    levels: tuple[Level, ...]
    range: float
    p: float


def main_effects(
    samples: Mapping[tuple[str, ...], Values], settings: Sequence[Sequence[str]]
) -> list[Effect]:
    """Returns the effect of each setting, if every combination of values is there.

    A level's mean is that of the samples' means, each sample counting once.

    Args:
      samples: the values of the seeds by the values of the settings, as many for each.
      settings: the values of each setting, in order.

    Returns:
      An effect for each setting; none for a single setting or where a combination is missing.
    """
    full = set(itertools.product(*settings)) == set(samples)
    if len(settings) < 2 or not full:
        return []
    freedom = sum(len(sample) - 1 for sample in samples.values())
    squares = sum(((sample - sample.mean()) ** 2).sum() for sample in samples.values())
    variance = float(squares) / freedom if freedom else math.nan
    return [_effect(samples, i, values, variance, freedom) for i, values in enumerate(settings)]


def _effect(
    samples: Mapping[tuple[str, ...], Values],
    index: int,
    values: Sequence[str],
    variance: float,
    freedom: int,
) -> Effect:
    levels = []
    for value in values:
        of_value = [sample for key, sample in samples.items() if key[index] == value]
        mean = float(np.mean([sample.mean() for sample in of_value]))
        error = math.sqrt(variance * sum(1 / len(s) for s in of_value)) / len(of_value)
        levels.append(Level(value, mean, error))
    low, high = min(levels, key=lambda at: at.mean), max(levels, key=lambda at: at.mean)
    error = math.hypot(low.error, high.error)
    p = math.nan
    if error > 0:
        q = (high.mean - low.mean) / error * math.sqrt(2)
        p = float(stats.studentized_range.sf(q, len(levels), freedom))
    return Effect(tuple(levels), high.mean - low.mean, p)
