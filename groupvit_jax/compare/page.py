"""A comparison as one HTML page, its answer first."""

import collections
import math
from collections.abc import Sequence

from markupsafe import Markup

from groupvit_jax.compare import outputs
from groupvit_jax.compare.curves import (
    UNFINISHED_COLOUR,
    curve_chart,
    learning_curves,
    rank_colours,
)
from groupvit_jax.compare.groups import Comparison
from groupvit_jax.compare.settings import in_order, numbers_of
from groupvit_jax.compare.statistics import Effect
from groupvit_jax.compare.verdict import APART, NOISE, UNKNOWN, best_and_worst, judge, p_equals
from groupvit_jax.report import charts, document

_MOST_BARS, _MOST_NAMES, _MOST_VALUES, _MOST_LABELS = 12, 8, 8, 16
_VERDICTS = {
    APART: ("Not noise", "#2e8b57"),
    NOISE: ("May be noise", "#d08a1d"),
    UNKNOWN: ("Cannot tell", "#7a808a"),
}


def page(comparison: Comparison) -> str:
    """Return the page: the verdict, charts, tables."""
    verdict, count = judge(comparison), len(outputs.all_scores(comparison))
    kind, colour = _VERDICTS[verdict.kind]
    return document.render(
        "comparison",
        title=f"Comparison of {count} runs",
        comparison=comparison,
        kind=kind,
        colour=colour,
        verdict=verdict.text,
        bars=_bars(comparison) if comparison.groups else "",
        metric_line=outputs.metric_line(comparison),
        p_line=outputs.P_LINE,
        group_table=outputs.group_table(comparison),
        run_table=outputs.run_table(comparison),
        colours=rank_colours(len(comparison.groups)),
        is_long=len(comparison.groups) > _MOST_BARS,
        effect_lines=[_effect_line(comparison, *item) for item in comparison.effects.items()],
        effects=_effects(comparison) if comparison.effects else "",
        parallel=_parallel(comparison),
        legend_colours=_legend_colours(comparison),
        learning=_learning(comparison),
    )


def _bars(comparison: Comparison) -> Markup:
    written, groups = comparison.format, comparison.groups[:_MOST_BARS]
    bars = [
        charts.Bar(
            group.label,
            f"{written.full(group.mean, group.std)} (n={len(group.values)})",
            group.mean * written.factor,
            group.std * written.factor,
            (group.values * written.factor).tolist(),
            colour,
        )
        for group, colour in zip(groups, rank_colours(len(comparison.groups)), strict=False)
    ]
    count = len(comparison.groups)
    which = f"the best {len(groups)} of {count}" if count > len(groups) else "best first"
    title = (
        f"{comparison.metric.name}, {which}: mean, standard deviation, a dot for each seed; "
        "dashed: the first"
    )
    return charts.interval_bars(title, bars, _label(comparison))


def _label(comparison: Comparison) -> str:
    unit = " in per cent" if comparison.format.unit else ""
    return comparison.metric.name + unit


def _effects(comparison: Comparison) -> Markup:
    factor = comparison.format.factor
    panels = [
        charts.Panel(
            name,
            [(at.value, at.mean * factor, at.error * factor) for at in effect.levels],
            bool(numbers_of([at.value for at in effect.levels])),
        )
        for name, effect in comparison.effects.items()
    ]
    title = f"{_label(comparison)}: mean over all else, and its standard error"
    return charts.effect_panels(title, panels, charts.ramp(0.5))


def _effect_line(comparison: Comparison, name: str, effect: Effect) -> str:
    best, worst = best_and_worst(comparison, effect)
    p = "one seed each: can't tell" if math.isnan(effect.p) else p_equals(effect.p)
    gap = comparison.format.difference(effect.range)
    return f"{name}: best at {best.value}, worst at {worst.value}, {gap} between them ({p})."


def _parallel(comparison: Comparison) -> Markup | str:
    """A chart of the settings and the result; "" for one setting, or two groups."""
    groups, written = comparison.groups, comparison.format
    if len(comparison.names) < 2 or len(groups) < 3:
        return ""
    axes, heights = [], []
    columns = zip(*(group.settings for group in groups), strict=True)
    for name, values in zip(comparison.names, columns, strict=True):
        labels, at = setting_axis(values)
        axes.append(charts.Axis(name, labels))
        heights.append(_side_by_side(at))
    # The best is at the top, also where less is better.
    low, high = groups[-1].mean * written.factor, groups[0].mean * written.factor
    span = high - low or 1.0
    marks = charts.ticks(min(low, high), max(low, high))
    unit = " %" if written.unit else ""
    axes.append(
        charts.Axis(comparison.metric.name + unit, {f"{m:.6g}": (m - low) / span for m in marks})
    )
    heights.append([(group.mean * written.factor - low) / span for group in groups])
    lines = [
        charts.Line(
            f"{group.label}: {written.full(group.mean, group.std)}",
            at, colour, 4.0 if group is groups[0] else 2.0,
        )
        for group, at, colour in zip(
            groups, zip(*heights, strict=True), rank_colours(len(groups)), strict=True
        )
    ]  # fmt: skip
    title = "A line for each setting, from the last (dark) to the first (light, thick)"
    return charts.parallel_coordinates(title, axes, lines[::-1])


def _side_by_side(heights: Sequence[float | None]) -> list[float | None]:
    """Move lines at the same height a little apart, those of better groups upwards."""
    counts = collections.Counter(heights)
    room = min(0.06, 0.4 / len(counts))
    seen: collections.Counter[float | None] = collections.Counter()
    moved: list[float | None] = []
    for height in heights:
        if height is None or counts[height] == 1:
            moved.append(height)
            continue
        moved.append(height + room * (0.5 - seen[height] / (counts[height] - 1)))
        seen[height] += 1
    return moved


def setting_axis(values: Sequence[str]) -> tuple[dict[str, float], list[float | None]]:
    """Return an axis's labels with their heights, and the height of each value.

    Few values are evenly spaced, in order. Many numbers are placed by their size, or by their
    logarithm where they range over more than a factor of 50.

    Args:
      values: as text; an absent one has no height among many numbers.
    """
    numbers = numbers_of(values)
    if len(numbers) <= _MOST_VALUES:
        ordered = in_order(values)
        heights = {value: i / max(len(ordered) - 1, 1) for i, value in enumerate(ordered)}
        every = -(-len(ordered) // _MOST_LABELS)
        return dict(list(heights.items())[::every]), [heights[value] for value in values]
    low, high = min(numbers.values()), max(numbers.values())
    is_log = low > 0 and high / low > 50

    def height(value: float) -> float:
        if is_log:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    labels = {f"{mark:.6g}": height(mark) for mark in charts.ticks(low, high, is_log)}
    return labels, [height(numbers[v]) if v in numbers else None for v in values]


def _learning(comparison: Comparison) -> list[Markup]:
    metric, factor = comparison.metric.name, comparison.format.factor
    title = f"{_label(comparison)} over the steps"
    parts = [curve_chart(title, learning_curves(comparison, metric, factor))]
    if metric != "loss":
        parts.append(curve_chart("loss over the steps", learning_curves(comparison, "loss")))
    return parts


def _legend_colours(comparison: Comparison) -> dict[str, str]:
    names = [group.label for group in comparison.groups]
    colours = dict(zip(names, rank_colours(len(names)), strict=True))
    if len(names) > _MOST_NAMES:
        first, last = names[0], names[-1]
        colours = {f"first: {first}": colours[first], f"last: {last}": colours[last]}
    if any(score.run.records for score in comparison.others):
        colours["not compared"] = UNFINISHED_COLOUR
    return colours
