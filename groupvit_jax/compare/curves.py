"""Learning curves of a comparison: the mean of each group over its seeds."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from groupvit_jax.compare.groups import Comparison
from groupvit_jax.report import charts
from groupvit_jax.runs.reading import Run

_MOST_POINTS, _MOST_BANDS = 200, 8
UNFINISHED_COLOUR = "#8a8f98"

Curve = Mapping[float, float]


class Curves(NamedTuple):
    """Curves by name, the last drawn on top; bands of one standard deviation; colours."""

    series: dict[str, list[tuple[float, float]]]
    bands: dict[str, list[tuple[float, float, float]]]
    colours: dict[str, str]


def rank_colours(count: int) -> list[str]:
    """Return colours for `count` groups, the best first."""
    return [charts.ramp(1 - i / max(count - 1, 1)) for i in range(count)]


def learning_curves(comparison: Comparison, metric: str, factor: float = 1.0) -> Curves:
    """Return the mean curve of each group, and the curves of unfinished runs.

    Args:
      comparison: the runs.
      metric: name of the metric.
      factor: multiplies the values.
    """
    edges = _edges(comparison, metric)
    found = Curves({}, {}, {})
    for score in comparison.others:
        curve = _thinned(score.run, metric, edges, factor)
        found.series[f"{score.run.name} ({score.run.state})"] = sorted(curve.items())
    found.colours.update(dict.fromkeys(found.series, UNFINISHED_COLOUR))
    colours = rank_colours(len(comparison.groups))
    # The best group last, so that it lies on top.
    for group, colour in reversed(list(zip(comparison.groups, colours, strict=True))):
        curves = [_thinned(score.run, metric, edges, factor) for score in group.scores]
        # A mean over other seeds at some steps would jump.
        shared = sorted(set(curves[0]).intersection(*curves[1:]))
        values = np.array([[curve[x] for x in shared] for curve in curves])
        mean = values.mean(axis=0)
        found.series[group.label] = list(zip(shared, mean.tolist(), strict=True))
        found.colours[group.label] = colour
        if len(curves) > 1 and len(comparison.groups) <= _MOST_BANDS:
            std = values.std(axis=0, ddof=1)
            found.bands[group.label] = [
                (x, float(m - s), float(m + s)) for x, m, s in zip(shared, mean, std, strict=True)
            ]
    return found


def _edges(comparison: Comparison, metric: str) -> Sequence[float]:
    """The steps of all runs; if there are many, the ends of `_MOST_POINTS` intervals."""
    scores = [s for group in comparison.groups for s in group.scores] + list(comparison.others)
    steps = sorted({float(step) for s in scores for step, _ in s.run.points(metric)})
    if len(steps) <= _MOST_POINTS:
        return steps
    return np.linspace(0.0, steps[-1], _MOST_POINTS + 1)[1:].tolist()


def _thinned(run: Run, metric: str, edges: Sequence[float], factor: float) -> Curve:
    """The mean of the finite values in each interval that ends at an edge."""
    points = [point for point in run.points(metric) if math.isfinite(point[1])]
    if not points:
        return {}
    steps, values = np.array(points, float).T
    # Steps at an edge belong to the interval it ends, also where `linspace` rounds the edge down.
    at = np.minimum(np.searchsorted(edges, steps - 1e-6), len(edges) - 1)
    counts, sums = np.bincount(at), np.bincount(at, weights=values * factor)
    return {edges[i]: float(sums[i] / counts[i]) for i in np.flatnonzero(counts).tolist()}


def curve_chart(title: str, curves: Curves) -> Markup:
    """Return the chart; values far beyond all others are cut off, and the title says so.

    Args:
      title: stands below.
      curves: of the groups.
    """
    values = [y for points in curves.series.values() for _, y in points]
    values += [y for points in curves.bands.values() for _, *ends in points for y in ends]
    if not values:
        return charts.line_chart(f"{title}: nothing recorded", {})
    low, high, is_cut = visible_range(values)
    if curves.bands:
        title += "; means over seeds, shaded: a standard deviation"
    if is_cut:
        title += "; values beyond are cut off"
    return charts.line_chart(
        title, curves.series, bands=curves.bands, colours=curves.colours, y_range=(low, high)
    )


def visible_range(values: Sequence[float]) -> tuple[float, float, bool]:
    """Return the range to draw, and whether values lie outside it.

    An outlier far outside the middle 90 % would flatten all curves, so it is cut off.

    Args:
      values: all values to draw, at least one.
    """
    low, high = min(values), max(values)
    few, most = np.quantile(values, [0.05, 0.95]).tolist()
    far = 2 * (most - few)
    kept_low, kept_high = max(low, few - far), min(high, most + far)
    if kept_low >= kept_high:
        kept_low, kept_high = low, high
    # Equal values have no range, and zeros no size either.
    room = 0.04 * (kept_high - kept_low) or 0.05 * abs(high) or 1.0
    is_cut = kept_low > low or kept_high < high
    return kept_low - room, kept_high + room, is_cut
