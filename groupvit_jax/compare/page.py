"""A comparison as one HTML page that answers at a glance which settings won."""

import collections
import html
import math
import re
from collections.abc import Sequence

import numpy as np

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

_MOST_BARS, _MOST_NAMES, _MOST_VALUES = 12, 8, 8
_VERDICTS = {
    APART: ("Not noise", "#2e8b57"),
    NOISE: ("May be noise", "#d08a1d"),
    UNKNOWN: ("Cannot tell", "#7a808a"),
}


def page(comparison: Comparison) -> str:
    """Returns the page: what can be said, charts, tables."""
    groups = comparison.groups
    parts = [_verdict(comparison)]
    if groups:
        parts.append(_bars(comparison))
    parts.append(document.paragraph(outputs.metric_line(comparison)))
    tables = [document.heading("Settings, best first"), _group_table(comparison)]
    if len(groups) > 1:
        tables.append(document.paragraph(outputs.P_LINE))
    shown = [*_effects(comparison), *_parallel(comparison), *_learning(comparison)]
    # A long table would hide the charts.
    parts += shown + tables if len(groups) > _MOST_BARS else tables + shown
    parts += [
        document.heading("Every run"),
        document.table(*outputs.run_table(comparison), sortable=True),
    ]
    return document.page(f"Comparison of {len(outputs.all_scores(comparison))} runs", parts)


def _verdict(comparison: Comparison) -> str:
    verdict = judge(comparison)
    name, colour = _VERDICTS[verdict.kind]
    text = re.sub("`([^`]*)`", r"<code>\1</code>", html.escape(verdict.text))
    notes = "".join(
        f'<small style="display: block">{html.escape(note)}</small>' for note in comparison.notes
    )
    style = f"border-left: .5rem solid {colour}; background: var(--shade); padding: .8rem 1rem"
    return f'<p id="verdict" style="{style}"><b>{name}.</b> {text}{notes}</p>'


def _bars(comparison: Comparison) -> str:
    written, groups = comparison.format, comparison.groups[:_MOST_BARS]
    colours = rank_colours(len(comparison.groups))
    bars = [
        charts.Bar(
            group.label,
            f"{written.full(group.mean, group.std)}  (n={len(group.values)})",
            group.mean * written.factor,
            group.std * written.factor,
            [value * written.factor for value in group.values.tolist()],
            colour,
        )
        for group, colour in zip(groups, colours, strict=False)
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


def _group_table(comparison: Comparison) -> str:
    """The table with its colour beside the rank of each group."""
    header, rows = outputs.group_table(comparison)
    for row, colour in zip(rows, rank_colours(len(comparison.groups)), strict=False):
        swatch = f'<span class="swatch" style="background:{colour}"></span>'
        row[0] = document.Html(f"{row[0]}&nbsp;{swatch}")
    return document.table(header, rows, sortable=True)


def _effects(comparison: Comparison) -> list[str]:
    effects = comparison.effects.items()
    if not effects:
        return []
    factor = comparison.format.factor
    panels = [
        charts.Panel(
            name,
            [(at.value, at.mean * factor, at.error * factor) for at in effect.levels],
            bool(numbers_of([at.value for at in effect.levels])),
        )
        for name, effect in effects
    ]
    title = f"{_label(comparison)}: mean over all else, and its standard error"
    return [
        document.heading("What each setting does by itself"),
        *(document.paragraph(_effect_line(comparison, *effect)) for effect in effects),
        charts.effect_panels(title, panels, charts.ramp(0.5)),
    ]


def _effect_line(comparison: Comparison, name: str, effect: Effect) -> str:
    best, worst = best_and_worst(comparison, effect)
    p = "one seed each: can't tell" if math.isnan(effect.p) else p_equals(effect.p)
    gap = comparison.format.difference(effect.range)
    return f"{name}: best at {best.value}, worst at {worst.value}, {gap} between them ({p})."


def _parallel(comparison: Comparison) -> list[str]:
    if len(comparison.names) < 2 or len(comparison.groups) < 3:
        return []
    settings = [group.settings for group in comparison.groups]
    axes, heights = [], []
    for name, values in zip(comparison.names, zip(*settings, strict=True), strict=True):
        labels, at = setting_axis(values)
        axes.append(charts.Axis(name, labels))
        heights.append(_side_by_side(at))
    low, high = comparison.groups[-1].mean, comparison.groups[0].mean
    span = (high - low) or 1.0
    factor = comparison.format.factor
    marks = document.ticks(min(low, high) * factor, max(low, high) * factor)
    labels = {f"{mark:.6g}": (mark / factor - low) / span for mark in marks}
    unit = " %" if comparison.format.unit else ""
    axes.append(charts.Axis(comparison.metric.name + unit, labels))
    heights.append([(group.mean - low) / span for group in comparison.groups])
    colours = rank_colours(len(settings))
    lines = [
        charts.Line(
            f"{group.label}: {comparison.format.full(group.mean, group.std)}",
            [at[i] for at in heights], colours[i], 4.0 if i == 0 else 2.0,
        )
        for i, group in enumerate(comparison.groups)
    ]  # fmt: skip
    title = "A line for each setting, from the last (dark) to the first (light, thick)"
    chart = charts.parallel_coordinates(title, axes, lines[::-1])
    return [document.heading("Settings and result"), chart]


def _side_by_side(heights: Sequence[float | None]) -> list[float | None]:
    """Moves lines at the same height a little apart, those of better groups upwards."""
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
    """Returns an axis's labels with their heights, and the height of each value.

    Few values are evenly spaced, in order; many numbers lie where they are, or their logarithms
    where they range over more than a factor of 50.

    Args:
      values: as text; what is absent has no height among many numbers.
    """
    numbers = numbers_of(values)
    if len(numbers) > _MOST_VALUES:
        return _scale(values, numbers)
    ordered = in_order(values)
    heights = {value: i / max(len(ordered) - 1, 1) for i, value in enumerate(ordered)}
    every = -(-len(ordered) // 16)
    return dict(list(heights.items())[::every]), [heights[value] for value in values]


def _scale(
    values: Sequence[str], numbers: dict[str, float]
) -> tuple[dict[str, float], list[float | None]]:
    low, high = min(numbers.values()), max(numbers.values())
    is_log = low > 0 and high / low > 50
    marks = document.ticks(low, high)
    if is_log:
        decades = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
        steps = (1, 2, 5) if len(decades) < 4 else (1,)
        marks = [step * 10.0**power for power in decades for step in steps]
        marks = [mark for mark in marks if low <= mark <= high]

    def height(value: float) -> float:
        if is_log:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    labels = {f"{mark:.6g}": height(mark) for mark in marks}
    return labels, [height(numbers[v]) if v in numbers else None for v in values]


def _learning(comparison: Comparison) -> list[str]:
    metric, factor = comparison.metric.name, comparison.format.factor
    parts = [document.heading("While they learnt"), _legend(comparison)]
    parts.append(
        curve_chart(
            f"{_label(comparison)} over the steps", learning_curves(comparison, metric, factor)
        )
    )
    if metric != "loss":
        parts.append(curve_chart("loss over the steps", learning_curves(comparison, "loss")))
    return parts


def _legend(comparison: Comparison) -> str:
    names, colours = (
        [group.label for group in comparison.groups],
        rank_colours(len(comparison.groups)),
    )
    if len(names) > _MOST_NAMES:
        names, colours = [f"first: {names[0]}", f"last: {names[-1]}"], [colours[0], colours[-1]]
    if any(score.run.records for score in comparison.others):
        names, colours = [*names, "not compared"], [*colours, UNFINISHED_COLOUR]
    rgb = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in colours]
    return document.legend(names, np.array(rgb, np.uint8).reshape(-1, 3))
