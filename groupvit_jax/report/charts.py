"""Charts of a comparison as inline SVG, beside those of `report.document`."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from groupvit_jax.report.document import figure, text, ticks

_WIDTH = 640.0
_BOLD = 'font-weight="600"'
# From the worst to the best: lighter and warmer, and clear of white and of black.
_RAMP = ((83, 74, 200), (150, 62, 190), (208, 64, 135), (232, 104, 72), (242, 160, 30))
_LETTER = 7.2  # width in a text of size 12, above the average


def ramp(position: float) -> str:
    """Returns a colour, of the worst for 0 to the best for 1."""
    at = min(max(position, 0.0), 1.0) * (len(_RAMP) - 1)
    i = min(int(at), len(_RAMP) - 2)
    mixed = (round(a + (at - i) * (b - a)) for a, b in zip(_RAMP[i], _RAMP[i + 1], strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)


def cut(content: str, most: int) -> str:
    """Returns a text of at most so many letters, its end replaced by "…" where longer."""
    return content if len(content) <= most else content[: most - 1] + "…"


class Bar(NamedTuple):
    """A bar: its name, its value as text, mean, standard deviation or NaN, and single values."""

    name: str
    shown: str
    mean: float
    std: float
    dots: Sequence[float]
    colour: str


def interval_bars(title: str, bars: Sequence[Bar], label: str) -> str:
    """Returns horizontal bars with their spread and single values on them.

    The bars begin at 0; where that would hide the differences they fade in at another value, and
    the label of the axis says so.

    Args:
      title: stands below.
      bars: from the top; there is at least one.
      label: of the axis.
    """
    ends = [v for bar in bars for v in (bar.mean, *bar.dots, *_interval(bar))]
    low, high = min(ends), max(ends)
    cut_off = high > low > 0.5 * high
    start = max(low - 0.3 * (high - low), 0.0) if cut_off else min(0.0, low)
    high = max(high, 0.0)
    scale = (_WIDTH - 24) / ((high - start) * 1.03 or 1.0)

    def place(value: float) -> float:
        return 12 + (value - start) * scale

    row, top = 42.0, 4.0
    bottom = top + row * len(bars)
    parts = [_FADE] if cut_off else []
    for value in ticks(start, start + (_WIDTH - 24) / scale):
        x = place(value)
        parts.append(_line(x, top, x, bottom, 'stroke="currentColor" stroke-opacity=".15"'))
        parts.append(text(x, bottom + 16, f"{value:.6g}"))
    first = place(bars[0].mean)
    dashed = 'stroke="currentColor" stroke-dasharray="3 4" stroke-opacity=".6"'
    parts.append(_line(first, top, first, bottom, dashed))
    for i, bar in enumerate(bars):
        parts += _bar(bar, top + i * row, place, place(max(start, 0.0)), cut_off)
    if cut_off:
        label += f"; the axis begins at {start:.4g}, not at 0"
    parts.append(text(_WIDTH / 2, bottom + 34, label))
    return figure(title, _WIDTH, bottom + 40, parts)


# A bar without its beginning: what fades in hasn't begun there.
_FADE = (
    '<defs><linearGradient id="fade"><stop offset="0" stop-color="#000"/>'
    '<stop offset=".12" stop-color="#fff"/></linearGradient><mask id="faded" '
    'maskContentUnits="objectBoundingBox"><rect width="1" height="1" fill="url(#fade)"/></mask>'
    "</defs>"
)


def _interval(bar: Bar) -> list[float]:
    return [] if math.isnan(bar.std) else [bar.mean - bar.std, bar.mean + bar.std]


def _bar(bar: Bar, y: float, place, zero: float, cut_off: bool) -> list[str]:
    most = int((_WIDTH - 40) / _LETTER) - len(bar.shown)
    name = html.escape(cut(bar.name, most))
    # The value comes first, for it is what narrow screens show.
    label = text(12.0, y + 15, bar.shown, "start").replace("<text", f"<text {_BOLD}")
    label = label.replace("</text>", f'<tspan dx="10" font-weight="400">{name}</tspan></text>')
    end, middle = place(bar.mean), y + 29
    x, width = min(zero, end), max(abs(end - zero), 0.5)
    parts = [
        titled(label, bar.name),
        f'<rect x="{x:.1f}" y="{y + 21:g}" width="{width:.1f}" height="16" rx="2" '
        f'fill="{bar.colour}"{" mask=" + chr(34) + "url(#faded)" + chr(34) if cut_off else ""}/>',
    ]
    for value in _interval(bar):
        parts.append(_line(place(value), middle - 6, place(value), middle + 6, _INK))
    if interval := _interval(bar):
        parts.append(_line(place(interval[0]), middle, place(interval[1]), middle, _INK))
    parts += [dot(place(value), middle, bar.colour, f"{value:.6g}") for value in bar.dots]
    return parts


_INK = 'stroke="currentColor" stroke-width="1.5"'


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" fill="none" {style}/>'


def dot(x: float, y: float, colour: str, name: str) -> str:
    """Returns a dot with a name when pointed at."""
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="var(--page)" stroke="{colour}" '
        f'stroke-width="2"><title>{html.escape(name)}</title></circle>'
    )


def titled(label: str, name: str) -> str:
    """Returns SVG text that shows a name when pointed at."""
    return label.replace("</text>", f"<title>{html.escape(name)}</title></text>")


class Axis(NamedTuple):
    """A vertical axis: its name, and labels with their heights, 0 at the bottom to 1."""

    name: str
    labels: Mapping[str, float]


class Line(NamedTuple):
    """A line through all axes: its name, its height on each (None: not known) and its colour."""

    name: str
    heights: Sequence[float | None]
    colour: str
    width: float


def parallel_coordinates(title: str, axes: Sequence[Axis], lines: Sequence[Line]) -> str:
    """Returns a line for each group through its settings to what it came to.

    Args:
      title: stands below.
      axes: from the left, two or more.
      lines: the last is drawn on top.
    """
    width, top, bottom = max(_WIDTH, 210.0 * len(axes) - 60), 54.0, 388.0
    opacity = 0.85 if len(lines) <= 12 else 0.6
    gap = (width - 130) / (len(axes) - 1)

    def place(i: int, height: float) -> tuple[float, float]:
        return 75 + i * gap, bottom - height * (bottom - top)

    parts = []
    for line in lines:
        points = [place(i, h) for i, h in enumerate(line.heights) if h is not None]
        style = f'stroke="{line.colour}" stroke-width="{line.width:g}" stroke-opacity="{opacity}"'
        parts.append(
            f'<path d="{_smooth(points)}" fill="none" {style}>'
            f"<title>{html.escape(line.name)}</title></path>"
        )
    crowded = max(len(axis.name) for axis in axes) * _LETTER > gap
    most = int(gap / _LETTER) * (2 if crowded else 1) - 1
    for i, axis in enumerate(axes):
        x, _ = place(i, 0.0)
        parts.append(_line(x, top, x, bottom, _INK))
        # Names at two heights have room for twice their distance.
        at, anchor = 16.0 if crowded and i % 2 == 0 else 34.0, "middle"
        if i in (0, len(axes) - 1):
            x_name, anchor = (4.0, "start") if i == 0 else (width - 4, "end")
        else:
            x_name = x
        name = text(x_name, at, cut(axis.name, most), anchor)
        parts.append(titled(name, axis.name).replace("<text", f"<text {_BOLD}"))
        for label, height in axis.labels.items():
            _, y = place(i, height)
            parts.append(_line(x - 3, y, x + 3, y, _INK))
            beside = (x + 7, "start") if i == len(axes) - 1 else (x - 7, "end")
            label_text = text(beside[0], y + 4, cut(label, 14 if i else 10), beside[1])
            shown = titled(label_text, label)
            parts.append(shown.replace("<text", f"<text {_HALO}"))
    return figure(title, width, bottom + 14, parts)


# The colour of the page round letters that lines pass behind.
_HALO = 'stroke="var(--page)" stroke-width="4" paint-order="stroke" stroke-linejoin="round"'


def _smooth(points: Sequence[tuple[float, float]]) -> str:
    (x, y), *rest = points
    path = [f"M{x:.1f} {y:.1f}"]
    for x2, y2 in rest:
        middle = (x + x2) / 2
        path.append(f"C{middle:.1f} {y:.1f} {middle:.1f} {y2:.1f} {x2:.1f} {y2:.1f}")
        x, y = x2, y2
    return "".join(path)


class Panel(NamedTuple):
    """A setting with (value, mean, standard error or NaN) of each value; numbers are joined."""

    name: str
    points: Sequence[tuple[str, float, float]]
    joined: bool


def effect_panels(title: str, panels: Sequence[Panel], colour: str) -> str:
    """Returns means by the values of each setting, on one scale, side by side.

    Args:
      title: stands below.
      panels: of the settings; there is at least one.
      colour: of the points.
    """
    ends = [m + s * (0 if math.isnan(e) else e) for p in panels for _, m, e in p.points
            for s in (-1, 1)]  # fmt: skip
    low, high = min(ends), max(ends)
    room = 0.12 * (high - low or abs(high) or 1.0)
    low, high = low - room, high + room
    top, bottom, left = 30.0, 210.0, 50.0
    total = sum(len(panel.points) for panel in panels)
    step = max(60.0, (_WIDTH - left - 20 * len(panels)) / total)
    width = left + step * total + 20 * len(panels)

    def height(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - top)

    parts = []
    for value in ticks(low, high, 5):
        y = height(value)
        parts.append(text(left - 6, y + 4, f"{value:.6g}", "end"))
        style = 'stroke="currentColor" stroke-opacity=".15"'
        parts.append(_line(left, y, width - 10, y, style))
    for panel in panels:
        parts += _panel(panel, left, step, (top, bottom), height, colour)
        left += step * len(panel.points) + 20
    return figure(title, width, bottom + 26, parts)


def _panel(
    panel: Panel, left: float, step: float, span: tuple[float, float], height, colour: str
) -> list[str]:
    xs = [left + step * (i + 0.5) for i in range(len(panel.points))]
    most = int(step * len(xs) / _LETTER)
    name = text((xs[0] + xs[-1]) / 2, span[0] - 14, cut(panel.name, most))
    parts = [titled(name, panel.name).replace("<text", f"<text {_BOLD}")]
    path = " ".join(
        f"{x:.1f},{height(m):.1f}" for x, (_, m, _) in zip(xs, panel.points, strict=True)
    )
    if panel.joined:
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    for x, (value, mean, error) in zip(xs, panel.points, strict=True):
        if not math.isnan(error):
            parts.append(_line(x, height(mean - error), x, height(mean + error), _INK))
        parts.append(dot(x, height(mean), colour, f"{panel.name}={value}: {mean:.6g}"))
        parts.append(titled(text(x, span[1] + 18, cut(value, int(step / _LETTER))), value))
    return parts
