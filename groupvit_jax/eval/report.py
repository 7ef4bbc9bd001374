"""A report as one HTML file: tables, curves and pictures, all inside it."""

import base64
import html
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from groupvit_jax.eval import visualize
from groupvit_jax.typing import UInt8

RgbImage = UInt8[np.ndarray, "H W 3"]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222 }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left }
figure { margin: 1rem 0 } figcaption { color: #555 }
img { max-width: 100% }
svg { max-width: 100%; height: auto }
code, pre { background: #f3f3f3; padding: .1rem .3rem }
.swatch { display: inline-block; width: 1em; height: 1em; margin: 0 .3em 0 1em;
          vertical-align: -.1em }
.scenes { display: grid; gap: .3rem; align-items: start }
.scenes img { width: 100%; display: block }
.scenes img[src^="data:image/png"] { image-rendering: pixelated }
.scenes p { grid-column: 1 / -1; margin: 0 0 1rem }
"""
_LINE_COLOURS = ("#1f6fb4", "#d1495b", "#3a7d44", "#8d6a9f")
_WIDTH, _HEIGHT, _MARGIN = 640.0, 300.0, 50.0
_BAR_HEIGHT, _MOST_BARS = 18.0, 24
_NAME_WIDTH, _BAR_WIDTH, _VALUE_WIDTH, _LETTER_WIDTH = 155.0, 125.0, 40.0, 6.2


def page(title: str, parts: Sequence[str]) -> str:
    """Returns the HTML document; the parts are HTML."""
    name = html.escape(title)
    head = f'<meta charset="utf-8"><title>{name}</title><style>{_STYLE}</style>'
    body = "\n".join((f"<h1>{name}</h1>", *parts))
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def heading(text: str) -> str:
    """Returns a section's heading."""
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text: str) -> str:
    """Returns a paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Returns a table; floats have one digit after the point, and NaN is "-"."""

    def line(tag: str, values: Sequence[object]) -> str:
        cells = (_number(v) if isinstance(v, float) else str(v) for v in values)
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    return f"<table>{line('th', header)}{''.join(line('td', row) for row in rows)}</table>"


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
        f'<span class="swatch" style="background:rgb({r},{g},{b})"></span>{html.escape(name)}'
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
    title: str, series: Mapping[str, Sequence[tuple[float, float]]], x_label: str = "step"
) -> str:
    """Returns curves as inline SVG; points that are not finite are left out."""
    kept = {
        name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()
    }
    kept = {name: points for name, points in kept.items() if points}
    if not kept:
        return paragraph(f"{title}: no points yet.")
    xs, ys = zip(*(point for points in kept.values() for point in points), strict=True)
    x_end, y_end = max(*xs, 1.0), max(*ys, 1e-9) * 1.05

    def place(x: float, y: float) -> tuple[float, float]:
        left = _MARGIN + x / x_end * (_WIDTH - 2 * _MARGIN)
        return round(left, 1), round(_HEIGHT - _MARGIN - y / y_end * (_HEIGHT - 2 * _MARGIN), 1)

    parts = [*_axes(x_end, y_end, place), _text(_WIDTH / 2, _HEIGHT - 8.0, x_label)]
    for (name, points), stroke in zip(kept.items(), _LINE_COLOURS * len(kept), strict=False):
        path = " ".join("{},{}".format(*place(*point)) for point in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{stroke}" stroke-width="2"/>')
        at = 24.0 + 18 * list(kept).index(name)
        parts.append(_text(_WIDTH - _MARGIN, at, name, anchor="end", fill=stroke))
    return _figure(title, _WIDTH, _HEIGHT, parts)


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
    return _figure(title, columns * width, rows * _BAR_HEIGHT, parts)


def _bar(name: str, value: float, x: float, y: float, scale: float) -> list[str]:
    """A name, its bar and its value, on a line that begins at (x, y)."""
    start, base, most = x + _NAME_WIDTH, y + 13, int(_NAME_WIDTH / _LETTER_WIDTH) - 1
    shown = name if len(name) <= most else name[: most - 1] + "…"
    label = _text(start - 6, base, shown, anchor="end")
    if shown != name:
        label = label.replace("</text>", f"<title>{html.escape(name)}</title></text>")
    length = 0.0 if math.isnan(value) else value * scale
    return [
        label,
        f'<rect x="{start:g}" y="{y + 3:g}" width="{length:.1f}" height="12" rx="1.5" '
        f'fill="{_LINE_COLOURS[0]}"/>',
        _text(start + length + 5, base, _number(value), anchor="start"),
    ]


def _figure(title: str, width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f'<figure><svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img" '
        f'aria-label="{html.escape(title)}">{"".join(parts)}</svg>'
        f"<figcaption>{html.escape(title)}</figcaption></figure>"
    )


def _axes(x_end: float, y_end: float, place) -> list[str]:
    parts = []
    for i in range(5):
        x, y = x_end * i / 4, y_end * i / 4
        left, bottom = place(x, 0.0)
        _, height = place(0.0, y)
        parts.append(_text(left, bottom + 18, f"{x:.4g}"))
        parts.append(_text(_MARGIN - 6, height + 4, f"{y:.3g}", anchor="end"))
        parts.append(
            f'<path d="M{_MARGIN} {height}H{_WIDTH - _MARGIN}" stroke="#ddd" stroke-width="1"/>'
        )
    return parts


def _text(x: float, y: float, text: str, anchor: str = "middle", fill: str = "#333") -> str:
    return (
        f'<text x="{x:.5g}" y="{y:.5g}" font-size="12" text-anchor="{anchor}" fill="{fill}">'
        f"{html.escape(text)}</text>"
    )


def write(path: Path, content: str) -> None:
    """Writes the report."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
