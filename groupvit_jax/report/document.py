"""A report as one HTML file: tables, curves and pictures, all inside it."""

import base64
import html
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from groupvit_jax.report import visualize
from groupvit_jax.typing import UInt8

RgbImage = UInt8[np.ndarray, "H W 3"]

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #222; --quiet: #555; --line: #ddd;
        --shade: #f3f3f3 }
@media (prefers-color-scheme: dark) {
  :root { --page: #16181b; --ink: #e4e4e4; --quiet: #a9a9a9; --line: #3c4045; --shade: #26292e } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: var(--ink); background: var(--page); overflow-wrap: break-word }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .2rem .8rem; border-bottom: 1px solid var(--line); text-align: right }
th:first-child, td:first-child { text-align: left }
th { vertical-align: bottom }
.scroll, figure { overflow-x: auto }
.sortable th { cursor: pointer }
figure { margin: 1rem 0 } figcaption { color: var(--quiet) }
img { max-width: 100% }
svg { max-width: 100%; height: auto }
@media (max-width: 40rem) { figure svg { max-width: none; width: 34rem } }
code, pre { background: var(--shade); padding: .1rem .3rem }
.key { display: inline-block; margin-right: 1em }
.swatch { display: inline-block; width: 1em; height: 1em; margin: 0 .3em 0 0;
          vertical-align: -.1em }
.scenes { display: grid; gap: .3rem; align-items: start }
.scenes img { width: 100%; display: block }
.scenes img[src^="data:image/png"] { image-rendering: pixelated }
.scenes p { grid-column: 1 / -1; margin: 0 0 1rem }
"""
# A click on a column's name sorts by it, another one turns the order round.
_SORTING = """
for (const name of document.querySelectorAll(".sortable th")) name.onclick = () => {
  const rows = [...name.closest("table").rows].slice(1), down = name.ariaSort === "ascending";
  const text = row => row.cells[name.cellIndex].innerText;
  const order = (a, b) => parseFloat(text(a)) - parseFloat(text(b)) ||
    text(a).localeCompare(text(b), "en", {numeric: true});
  for (const other of name.parentNode.cells) other.ariaSort = null;
  name.ariaSort = down ? "descending" : "ascending";
  rows.sort((a, b) => down ? order(b, a) : order(a, b)).forEach(row => row.parentNode.append(row));
};
"""
_LINE_COLOURS = ("#1f6fb4", "#d1495b", "#3a7d44", "#8d6a9f")
_WIDTH, _HEIGHT, _MARGIN = 640.0, 300.0, 50.0
_BAR_HEIGHT, _MOST_BARS = 18.0, 24
_NAME_WIDTH, _BAR_WIDTH, _VALUE_WIDTH, _LETTER_WIDTH = 155.0, 125.0, 40.0, 6.2


class Html(str):
    """A text that is HTML already, in a cell of a table."""


def page(title: str, parts: Sequence[str]) -> str:
    """Returns the HTML document; the parts are HTML."""
    name = html.escape(title)
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{name}</title><style>{_STYLE}</style>"
    )
    body = "\n".join((f"<h1>{name}</h1>", *parts))
    if 'class="sortable"' in body:
        body += f"\n<script>{_SORTING}</script>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def heading(text: str) -> str:
    """Returns a section's heading."""
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text: str) -> str:
    """Returns a paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def table(header: Sequence[str], rows: Sequence[Sequence[object]], sortable: bool = False) -> str:
    """Returns a table; floats have one digit after the point, and NaN is "-".

    Args:
      header: names of the columns.
      rows: of cells; what is no `Html` is escaped.
      sortable: whether a click on a column's name sorts by it.
    """

    def line(tag: str, values: Sequence[object]) -> str:
        return "<tr>" + "".join(f"<{tag}>{_cell(value)}</{tag}>" for value in values) + "</tr>"

    kind = ' class="sortable"' if sortable else ""
    body = line("th", header) + "".join(line("td", row) for row in rows)
    return f'<div class="scroll"><table{kind}>{body}</table></div>'


def _cell(value: object) -> str:
    if isinstance(value, Html):
        return value
    return html.escape(_number(value) if isinstance(value, float) else str(value))


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def picture(image: RgbImage, alt: str = "") -> str:
    """Returns the image, embedded as PNG: every pixel as it is."""
    return _embedded("png", visualize.png(image), alt)


def photo(image: RgbImage, alt: str = "") -> str:
    """Returns the image, embedded as JPEG."""
    return _embedded("jpeg", visualize.jpeg(image), alt)


def _embedded(kind: str, data: bytes, alt: str) -> str:
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return f'<img alt="{html.escape(alt)}" src="{source}">'


def legend(names: Sequence[str], colours: UInt8[np.ndarray, "N 3"]) -> str:
    """Returns a line that says which colour is which."""
    items = (
        f'<span class="key"><span class="swatch" style="background:rgb({r},{g},{b})"></span>'
        f"{html.escape(name)}</span>"
        for name, (r, g, b) in zip(names, colours.tolist(), strict=True)
    )
    return f"<p>{''.join(items)}</p>"


def scenes(
    header: Sequence[str],
    rows: Sequence[tuple[Sequence[RgbImage], str]],
    embed: Callable[[RgbImage, str], str] = picture,
) -> str:
    """Returns rows of as many pictures as the header has names, each with a line of text below."""
    cells = [f"<b>{html.escape(name)}</b>" for name in header]
    for images, text in rows:
        cells += [embed(image, text) for image in images]
        cells.append(f"<p>{html.escape(text)}</p>")
    columns = f"grid-template-columns: repeat({len(header)}, 1fr)"
    return f'<div class="scenes" style="{columns}">{"".join(cells)}</div>'


def line_chart(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    x_label: str = "step",
    *,
    bands: Mapping[str, Sequence[tuple[float, float, float]]] | None = None,
    colours: Mapping[str, str] | None = None,
    y_range: tuple[float, float] | None = None,
) -> str:
    """Returns curves as inline SVG; points that are not finite are left out.

    Args:
      title: stands below.
      series: points of each name; the last is drawn on top.
      x_label: what is to the right.
      bands: for some of the names points (x, low, high), shaded between low and high.
      colours: of the names, where a legend stands elsewhere; else they are written at the top.
      y_range: what is shown; from 0 to a little above the highest point by default.
    """
    kept = {
        name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()
    }
    kept = {name: points for name, points in kept.items() if points}
    if not kept:
        return paragraph(f"{title}: no points yet.")
    xs, ys = zip(*(point for points in kept.values() for point in points), strict=True)
    x_end = max(*xs, 1.0)
    y_start, y_end = y_range or (0.0, max(*ys, 1e-9) * 1.05)
    top = 12.0 if colours else _MARGIN
    height = _HEIGHT - _MARGIN - top

    def place(x: float, y: float) -> tuple[float, float]:
        left = _MARGIN + x / x_end * (_WIDTH - 2 * _MARGIN)
        up = (y - y_start) / (y_end - y_start) * height
        return round(left, 1), round(_HEIGHT - _MARGIN - up, 1)

    strokes = colours or dict(zip(kept, _LINE_COLOURS * len(kept), strict=False))
    inside = [
        f'<polygon points="{_band(points, place)}" fill="{strokes[name]}" opacity=".18"/>'
        for name, points in (bands or {}).items()
    ]
    inside += [_curve(name, points, place, strokes[name]) for name, points in kept.items()]
    # An SVG of its own cuts off what lies outside of the range.
    window = (
        f'<svg y="{top:g}" width="{_WIDTH:g}" height="{height:g}" '
        f'viewBox="0 {top:g} {_WIDTH:g} {height:g}">{"".join(inside)}</svg>'
    )
    parts = [*_axes(x_end, (y_start, y_end), place), window]
    parts.append(text(_WIDTH / 2, _HEIGHT - 8.0, x_label))
    for i, name in enumerate(() if colours else kept):
        parts.append(text(_WIDTH - _MARGIN, 24.0 + 18 * i, name, "end", strokes[name]))
    return figure(title, _WIDTH, _HEIGHT, parts)


def _curve(name: str, points: Sequence[tuple[float, float]], place, stroke: str) -> str:
    path = " ".join("{},{}".format(*place(*point)) for point in points)
    named = f"<title>{html.escape(name)}</title>"
    if len(points) == 1:
        left, top = place(*points[0])
        return f'<circle cx="{left}" cy="{top}" r="3" fill="{stroke}">{named}</circle>'
    style = f'fill="none" stroke="{stroke}" stroke-width="2"'
    return f'<polyline points="{path}" {style}>{named}</polyline>'


def _band(points: Sequence[tuple[float, float, float]], place) -> str:
    there = [place(x, high) for x, _, high in points]
    back = [place(x, low) for x, low, _ in reversed(points)]
    return " ".join(f"{left},{top}" for left, top in there + back)


def bar_chart(title: str, values: Mapping[str, float], full: float | None = None) -> str:
    """Returns horizontal bars as inline SVG, the longest first, in up to three columns.

    Args:
      title: stands below.
      values: of each name, not negative; NaN comes last, without a bar.
      full: value of a bar as long as there is room; the largest value by default.
    """
    known = [value for value in values.values() if not math.isnan(value)]
    full = full or max(known, default=0.0) or 1.0
    ordered = sorted(values, key=lambda name: math.inf if math.isnan(v := values[name]) else -v)
    columns = min(3, -(-len(ordered) // _MOST_BARS)) or 1
    rows, room = -(-len(ordered) // columns), _BAR_WIDTH * (2 if columns == 1 else 1)
    width, parts = _NAME_WIDTH + room + _VALUE_WIDTH, []
    for i, name in enumerate(ordered):
        column, row = divmod(i, rows)
        parts += _bar(name, values[name], column * width, row * _BAR_HEIGHT, room / full)
    return figure(title, columns * width, rows * _BAR_HEIGHT, parts)


def _bar(name: str, value: float, x: float, y: float, scale: float) -> list[str]:
    """A name, its bar and its value, on a line that begins at (x, y)."""
    start, base, most = x + _NAME_WIDTH, y + 13, int(_NAME_WIDTH / _LETTER_WIDTH) - 1
    shown = name if len(name) <= most else name[: most - 1] + "…"
    label = text(start - 6, base, shown, anchor="end")
    if shown != name:
        label = label.replace("</text>", f"<title>{html.escape(name)}</title></text>")
    length = 0.0 if math.isnan(value) else value * scale
    return [
        label,
        f'<rect x="{start:g}" y="{y + 3:g}" width="{length:.1f}" height="12" rx="1.5" '
        f'fill="{_LINE_COLOURS[0]}"/>',
        text(start + length + 5, base, _number(value), anchor="start"),
    ]


def figure(title: str, width: float, height: float, parts: Sequence[str]) -> str:
    """Returns an SVG of that size, with the title below."""
    return (
        f'<figure><svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img" '
        f'aria-label="{html.escape(title)}">{"".join(parts)}</svg>'
        f"<figcaption>{html.escape(title)}</figcaption></figure>"
    )


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Returns round numbers from low to high, about equally many of each range."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(step * i, 12 - math.floor(math.log10(step))) for i in range(first, last + 1)]


def _axes(x_end: float, y_range: tuple[float, float], place) -> list[str]:
    _, bottom = place(0.0, y_range[0])
    parts = [text(place(x, y_range[0])[0], bottom + 18, f"{x:.6g}") for x in ticks(0.0, x_end)]
    for y in ticks(*y_range):
        _, height = place(0.0, y)
        parts.append(text(_MARGIN - 6, height + 4, f"{y:.4g}", anchor="end"))
        parts.append(
            f'<path d="M{_MARGIN} {height}H{_WIDTH - _MARGIN}" stroke="currentColor" '
            'stroke-opacity=".15"/>'
        )
    return parts


def text(
    x: float, y: float, content: str, anchor: str = "middle", fill: str = "currentColor"
) -> str:
    """Returns a line of SVG text; (x, y) is on its base line."""
    return (
        f'<text x="{x:.5g}" y="{y:.5g}" font-size="12" text-anchor="{anchor}" fill="{fill}">'
        f"{html.escape(content)}</text>"
    )


def write(path: Path, content: str) -> None:
    """Writes the report."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
