"""Means over seeds, and tests of their differences.

SciPy's `ttest_ind` gives the same p (a test compares them) but warns about seeds without any
spread, and it has neither Holm's correction nor main effects.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

Values = Float[np.ndarray, " _"]  # samples may differ in size
# Significance level: a difference with a smaller p is called "not noise".
LEVEL = 0.05


class Difference(NamedTuple):
    """The difference between the means of two samples.

    Attributes:
      value: the first mean minus the second.
      error: standard error of `value`; NaN if a sample has a single value.
      t: value / error.
      p: two-sided p of Welch's t test.
      needed: the smallest difference with p below `LEVEL` at this standard error.
    """

    value: float
    error: float
    t: float
    p: float
    needed: float


def mean_and_std(values: Values) -> tuple[float, float]:
    """Return mean and sample standard deviation (N - 1); the latter is NaN for N = 1."""
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else math.nan


def welch(first: Values, second: Values) -> Difference:
    """Compare two samples of possibly different variance (Welch, Biometrika 1947).

    Args:
      first: one sample, a value for each seed.
      second: the other sample.
    """
    value = float(first.mean() - second.mean())
    nothing = Difference(value, math.nan, math.nan, math.nan, math.nan)
    if min(len(first), len(second)) < 2:
        return nothing
    parts = [float(sample.var(ddof=1)) / len(sample) for sample in (first, second)]
    error = math.sqrt(sum(parts))
    if error == 0.0:  # deterministic runs: t would be infinite, and p = 0 would mean nothing
        return nothing._replace(error=0.0)
    sizes = len(first), len(second)
    # Degrees of freedom: n1 + n2 - 2 at most, fewer where one sample has most of the variance.
    freedom = error**4 / sum(part**2 / (size - 1) for part, size in zip(parts, sizes, strict=True))
    t = value / error
    needed = error * float(special.stdtrit(freedom, 1 - LEVEL / 2))
    return Difference(value, error, t, 2 * float(special.stdtr(freedom, -abs(t))), needed)


def holm(p: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm, 1979); NaN stays and is not counted."""
    values = np.array(p, float)
    order = np.argsort(values)  # NaN comes last
    # The smallest p is multiplied by the number of tests, the next by one less.
    remaining = np.isfinite(values).sum() - np.arange(len(values))
    # Never below the p before it: the order of the tests stays.
    values[order] = np.maximum.accumulate(np.minimum(values[order] * remaining, 1.0))
    return values.tolist()


class Level(NamedTuple):
    """The marginal mean of one value of a setting, and its standard error."""

    value: str
    mean: float
    error: float


class Effect(NamedTuple):
    """The main effect of a setting.

    Attributes:
      levels: its values with their marginal means.
      range: the highest mean minus the lowest.
      p: p of `range` (Tukey's studentized range) with the variance between seeds pooled over all
        samples; NaN without repeated seeds.
    """

    levels: tuple[Level, ...]
    range: float
    p: float


def main_effects(
    samples: Mapping[tuple[str, ...], Values], settings: Sequence[Sequence[str]]
) -> list[Effect]:
    """Return the main effect of each setting of a full factorial design.

    A level's mean is the mean of its samples' means, so each combination counts once.

    Args:
      samples: the seeds' values for each combination of settings.
      settings: the values of each setting, in order.

    Returns:
      An effect for each setting; none for a single setting or if a combination is missing.
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
        # Of a mean of means: the sum of their variances, over their number squared.
        error = math.sqrt(variance * sum(1 / len(s) for s in of_value)) / len(of_value)
        levels.append(Level(value, mean, error))
    low, high = min(levels, key=lambda at: at.mean), max(levels, key=lambda at: at.mean)
    error = math.hypot(low.error, high.error)
    p = math.nan
    if error > 0:
        from scipy import stats  # half a second, only needed here

        # q counts in errors of one mean, which a difference's exceeds by sqrt(2).
        q = (high.mean - low.mean) / error * math.sqrt(2)
        p = float(stats.studentized_range.sf(q, len(levels), freedom))
    return Effect(tuple(levels), high.mean - low.mean, p)
