"""Charts as inline SVG, drawn with Matplotlib.

Importing this module imports Matplotlib, half a second: do it where a page is written, not at the
head of a module that every command imports.
"""

import functools
import io
import itertools
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec
from xml.etree import ElementTree

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import LogLocator, MaxNLocator

_Parameters = ParamSpec("_Parameters")
_Keywords = dict[Any, Any]  # keyword arguments of Matplotlib

_WIDTH = 640.0  # pixels of most charts
# Matplotlib knows no CSS: these two are drawn with and then replaced by the page's own colours,
# which change with the light or dark scheme of the reader.
_INK, _PAPER = "#010203", "#fdfcfb"
_CSS = {_INK: "currentColor", _PAPER: "var(--page)"}
_COLOURS = ("#1f6fb4", "#d1495b", "#3a7d44", "#8d6a9f")
# From worst to best: lighter and warmer, with contrast to white and to black.
_RAMP = LinearSegmentedColormap.from_list(
    "ramp", ["#534ac8", "#963ebe", "#d04087", "#e86848", "#f2a01e"]
)
_LETTER = 7.2  # pixels, above the average width of a letter
_NAME = "name: "  # begins the id of what shows a name when pointed at
_STYLE: _Keywords = {
    "svg.fonttype": "none",  # letters stay text: small, searchable, in the page's font
    "text.parse_math": False,  # labels may hold dollar signs
    "font.size": 12,
    "figure.dpi": 72,  # one unit of the SVG is one CSS pixel
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.alpha": 0.15,
    "lines.linewidth": 2,
    "errorbar.capsize": 5,
    **{f"axes.spines.{side}": False for side in ("left", "right", "top", "bottom")},
    **{f"{axis}tick.major.size": 0 for axis in "xy"},
    **dict.fromkeys(
        ["text.color", "axes.labelcolor", "grid.color", "xtick.color", "ytick.color"], _INK
    ),
}


def _chart(
    draw: Callable[Concatenate[str, _Parameters], Figure],
) -> Callable[Concatenate[str, _Parameters], Markup]:
    """Turn a function that draws a figure into one that returns an HTML figure with its title."""

    @functools.wraps(draw)
    def chart(title: str, *args: _Parameters.args, **kwargs: _Parameters.kwargs) -> Markup:
        # Ids of clip paths are hashes: with the title they differ between the charts of a page.
        style = matplotlib.rc_context({**_STYLE, "svg.hashsalt": title})
        with style, warnings.catch_warnings(), io.BytesIO() as file:
            # Letters are measured in Matplotlib's font, which lacks some; the browser's has them.
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            # Metadata of None is left out; with the date, equal charts would differ.
            draw(title, *args, **kwargs).savefig(
                file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
            )
            svg = Markup(_inline(file.getvalue(), title))
        return Markup("<figure>{}<figcaption>{}</figcaption></figure>").format(svg, title)

    return chart


def _inline(svg: bytes, title: str) -> str:
    """Return an SVG file as an element of an HTML page, with names, in the page's colours."""
    root = ElementTree.fromstring(re.sub(rb"\s+", b" ", svg))
    root.remove(root[0])  # a style sheet, which would hold for the whole page
    for element in root.iter():
        # ElementTree spells names as {URI}name, but HTML knows SVG without a namespace.
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {
            # Hundredths of a pixel are enough.
            key.rpartition("}")[2]: text if key == "id" else re.sub(r"(\.\d\d)\d+", r"\1", text)
            for key, text in element.items()
        }
        element.tail = None
        if "style" in element.attrib:
            style = re.sub(r" ?font-family: [^;]*;?", "", element.attrib["style"])
            element.attrib["style"] = re.sub("|".join(_CSS), lambda m: _CSS[m[0]], style)
        name = element.get("id", "")
        if name.startswith(_NAME):
            named = ElementTree.Element("title")
            named.text = name.removeprefix(_NAME)
            element.insert(0, named)
        # Matplotlib's ids of markers (m) and clip paths (p), which others refer to by hash.
        if not re.fullmatch("[mp][0-9a-f]{10}", name):  # nothing refers to it
            element.attrib.pop("id", None)
    _, _, width, height = root.attrib["viewBox"].split()
    root.attrib |= {"width": width, "height": height, "role": "img", "aria-label": title,
                    "stroke-linejoin": "round"}  # fmt: skip
    return ElementTree.tostring(root, encoding="unicode")


def _figure(width: float, height: float) -> Figure:
    layout = ConstrainedLayoutEngine(wspace=0.06)
    return Figure(figsize=(width / 72, height / 72), layout=layout)


def _ticks(axes: Axes, axis: Literal["x", "y"]) -> None:
    """Put round numbers at an axis."""
    axes.locator_params(axis=axis, nbins=6, steps=[1, 2, 5, 10])
    getattr(axes, f"{axis}axis").set_major_formatter("{x:.6g}")


def _dot(axes: Axes, x: float, y: float, colour: str, name: str) -> None:
    style: _Keywords = {"markersize": 7, "markerfacecolor": _PAPER, "markeredgewidth": 2}
    axes.plot(x, y, "o", color=colour, **style, gid=_NAME + name, clip_on=False, zorder=3)


def ramp(position: float) -> str:
    """Return a colour between that of the worst, at 0, and that of the best, at 1."""
    return to_hex(_RAMP(position))


def ticks(low: float, high: float, log: bool = False) -> list[float]:
    """Return round numbers from low to high, about equally many of each range.

    Args:
      low: the lower end.
      high: the upper end.
      log: whether the scale is logarithmic: powers of ten, of few also twice and five times.
    """
    subs = (1.0, 2.0, 5.0) if high < 1e3 * low else (1.0,)
    locator = LogLocator(subs=subs) if log else MaxNLocator(6, steps=[1, 2, 5, 10])
    # Marks are multiples in floats: one at an end may lie just beyond it.
    tolerance = 1e-9 * (high - low)
    marks = map(float, locator.tick_values(low, high))
    return [mark for mark in marks if low - tolerance <= mark <= high + tolerance]


def cut(content: str, most: int) -> str:
    """Return a text of at most so many letters, its end replaced by "…" where longer."""
    return content if len(content) <= most else content[: most - 1] + "…"


@_chart
def line_chart(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    bands: Mapping[str, Sequence[tuple[float, float, float]]] | None = None,
    colours: Mapping[str, str] | None = None,
    y_range: tuple[float, float] | None = None,
) -> Figure:
    """Draw curves over the steps; points that are not finite are left out.

    Args:
      title: stands below.
      series: points of each name; the last is drawn on top.
      bands: for some of the names points (x, low, high), shaded between low and high.
      colours: of the names, if a legend stands elsewhere; else the chart has one.
      y_range: what is shown; from 0 to a little above the highest point by default.
    """
    figure = _figure(_WIDTH, 300.0)
    axes = figure.subplots()
    kept = {name: [p for p in points if math.isfinite(p[1])] for name, points in series.items()}
    kept = {name: points for name, points in kept.items() if points}
    strokes = colours or dict(zip(kept, itertools.cycle(_COLOURS), strict=False))
    for name, band in (bands or {}).items():
        axes.fill_between(*np.transpose(band), color=strokes[name], alpha=0.18, linewidth=0)
    for name, points in kept.items():
        marker = "o" if len(points) == 1 else None  # a line of one point is not seen
        x, y = np.transpose(points)
        axes.plot(x, y, marker=marker, color=strokes[name], label=name, gid=_NAME + name)
    if not kept:
        axes.text(0.5, 0.5, "no points yet", ha="center", transform=axes.transAxes)
    top = max((y for points in kept.values() for _, y in points), default=1.0)
    end = max((x for points in kept.values() for x, _ in points), default=1.0)
    axes.set(xlabel="step", xlim=(0, max(end, 1.0)), ylim=y_range or (0, 1.05 * max(top, 1e-9)))
    _ticks(axes, "x")
    _ticks(axes, "y")
    if kept and not colours:
        place: _Keywords = {"loc": "outside upper right", "ncols": 2, "frameon": False}
        figure.legend(**place, labelcolor="linecolor", handlelength=1)
    return figure


class Bar(NamedTuple):
    """A bar: its name, its value as text, mean, standard deviation or NaN, and single values."""

    name: str
    shown: str
    mean: float
    std: float
    dots: Sequence[float]
    colour: str


@_chart
def interval_bars(title: str, bars: Sequence[Bar], label: str) -> Figure:
    """Draw horizontal bars with their spread and single values on them.

    The bars begin at 0. Where that would hide the differences they fade in at another value, and
    the label of the axis says so.

    Args:
      title: stands below.
      bars: from the top; there is at least one.
      label: of the axis.
    """
    spread = [v for b in bars if not math.isnan(b.std) for v in (b.mean - b.std, b.mean + b.std)]
    ends = [*spread, *(value for bar in bars for value in (bar.mean, *bar.dots))]
    low, high = min(ends), max(ends)
    is_cut = high > low > 0.5 * high
    start = max(low - 0.3 * (high - low), 0.0) if is_cut else min(0.0, low)
    end = start + 1.03 * (max(high, 0.0) - start or 1.0)
    figure = _figure(_WIDTH, 42.0 * len(bars) + 44)
    axes = figure.subplots()
    for y, bar in enumerate(bars):
        zero = max(start, 0.0)
        axes.barh(y, bar.mean - zero, 0.38, zero, color=bar.colour, gid=_NAME + bar.shown)
        # The value comes first, because narrow screens show the beginning.
        above: _Keywords = {"textcoords": "offset points", "va": "bottom"}
        place = ("axes fraction", "data")
        value = axes.annotate(bar.shown, (0, y), (0, 9), place, **above, weight="bold")
        name = cut(bar.name, int((_WIDTH - 40) / _LETTER) - len(bar.shown))
        titled: _Keywords = {"gid": _NAME + bar.name, "in_layout": False}
        axes.annotate(name, (1, 0), (10, 0), value, **above, **titled)
    if is_cut:
        label += f"; the axis begins at {start:.4g}, not at 0"
        # Layers of the page's colour. With opacities 1, 1/2, 1/3, ... the bars fade in evenly.
        for i in range(1, 17):
            edge = start + 0.008 * i * (end - start)
            axes.axvspan(start, edge, color=_PAPER, alpha=1 / i, linewidth=0)
    for y, bar in enumerate(bars):
        if not math.isnan(bar.std):
            axes.errorbar(bar.mean, y, xerr=bar.std, color=_INK, linewidth=1.5)
        for dot in bar.dots:
            _dot(axes, dot, float(y), bar.colour, f"{dot:.6g}")
    axes.axvline(bars[0].mean, color=_INK, linewidth=1, alpha=0.6, linestyle=(0, (3, 4)))
    # Upwards from the last: the first bar stands on top.
    axes.set(xlabel=label, xlim=(start, end), ylim=(len(bars) - 0.6, -0.8), yticks=[])
    axes.grid(axis="x")
    _ticks(axes, "x")
    return figure


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


@_chart
def parallel_coordinates(title: str, axes: Sequence[Axis], lines: Sequence[Line]) -> Figure:
    """Draw a line for each group through its settings to its result.

    Args:
      title: stands below.
      axes: from the left, two or more.
      lines: the last is drawn on top.
    """
    width, top, bottom, height = max(_WIDTH, 210.0 * len(axes) - 60), 54, 14, 334
    gap = (width - 130) / (len(axes) - 1)
    figure = Figure(figsize=(width / 72, (top + height + bottom) / 72))
    whole = figure.add_axes((0, 0, 1, 1))
    # One unit of x is `gap` pixels, one of y `height`: divided by these, pixels become units.
    whole.set(xlim=(-75 / gap, len(axes) - 1 + 55 / gap), ylim=(-bottom / height, 1 + top / height))
    whole.set_axis_off()
    opacity = 0.85 if len(lines) <= 12 else 0.6
    for line in lines:
        path = _smooth([(float(i), h) for i, h in enumerate(line.heights) if h is not None])
        style = {"edgecolor": line.colour, "linewidth": line.width, "alpha": opacity}
        whole.add_patch(PathPatch(path, fill=False, **style, gid=_NAME + line.name))
    crowded = max(len(axis.name) for axis in axes) * _LETTER > gap
    most = int(gap / _LETTER) * (2 if crowded else 1) - 1
    behind = {"boxstyle": "square,pad=0.1", "facecolor": _PAPER, "edgecolor": "none", "alpha": 0.8}
    for i, axis in enumerate(axes):
        is_last = i == len(axes) - 1
        whole.plot([i, i], [0, 1], color=_INK, linewidth=1.5)
        # Two rows of names have room for twice their distance.
        y = 1 + (38 if crowded and i % 2 == 0 else 20) / height
        x = -71 / gap if i == 0 else i + 51 / gap if is_last else i
        side = "left" if i == 0 else "right" if is_last else "center"
        name: _Keywords = {"ha": side, "weight": "bold", "gid": _NAME + axis.name}
        whole.text(x, y, cut(axis.name, most), **name)
        for label, at in axis.labels.items():
            whole.plot([i - 3 / gap, i + 3 / gap], [at, at], color=_INK, linewidth=1.5)
            x, side = (i + 7 / gap, "left") if is_last else (i - 7 / gap, "right")
            place: _Keywords = {"ha": side, "va": "center", "bbox": behind, "gid": _NAME + label}
            whole.text(x, at, cut(label, 14 if i else 10), **place)
    return figure


def _smooth(points: Sequence[tuple[float, float]]) -> Path:
    """Return a curve that is level at each point."""
    vertices, codes = [points[0]], [Path.MOVETO]
    for (x, y), (x2, y2) in itertools.pairwise(points):
        # Control points half way, each at the height of its end, make the curve level there.
        vertices += [((x + x2) / 2, y), ((x + x2) / 2, y2), (x2, y2)]
        codes += [Path.CURVE4] * 3
    return Path(vertices, codes)


class Panel(NamedTuple):
    """A setting with (value, mean, standard error or NaN) of each value; numbers are joined."""

    name: str
    points: Sequence[tuple[str, float, float]]
    joined: bool


@_chart
def effect_panels(title: str, panels: Sequence[Panel], colour: str) -> Figure:
    """Draw means by the values of each setting, on one scale, side by side.

    Args:
      title: stands below.
      panels: of the settings; there is at least one.
      colour: of the points.
    """
    counts = [len(panel.points) for panel in panels]
    width = max(_WIDTH, 50 + 60.0 * sum(counts) + 20 * len(panels))
    step = (width - 50 - 20 * len(panels)) / sum(counts)
    figure = _figure(width, 236.0)
    drawn = figure.subplots(1, len(panels), sharey=True, squeeze=False, width_ratios=counts)[0]
    for panel, axes in zip(panels, drawn, strict=True):
        values, means, _ = zip(*panel.points, strict=True)
        places = range(len(values))
        if panel.joined:
            axes.plot(places, means, color=colour)
        for x, (value, mean, error) in enumerate(panel.points):
            if not math.isnan(error):
                axes.errorbar(x, mean, error, color=_INK, linewidth=1.5)
            _dot(axes, float(x), mean, colour, f"{panel.name}={value}: {mean:.6g}")
        axes.set(xlim=(-0.5, len(values) - 0.5))
        axes.margins(y=0.12)
        axes.set_title(cut(panel.name, int(step * len(values) / _LETTER)), gid=_NAME + panel.name)
        axes.set_xticks(places, [cut(value, int(step / _LETTER)) for value in values])
        for value, label in zip(values, axes.get_xticklabels(), strict=True):
            label.set_gid(_NAME + value)
    _ticks(drawn[0], "y")
    return figure
