"""A report as one HTML file: tables, curves and pictures, all inside it."""

import base64
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from groupvit_jax.eval import visualize
from groupvit_jax.typing import UInt8

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222 }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left }
figure { margin: 1rem 0 } figcaption { color: #555 }
img { max-width: 100%; image-rendering: pixelated }
code, pre { background: #f3f3f3; padding: .1rem .3rem }
.swatch { display: inline-block; width: 1em; height: 1em; margin: 0 .3em 0 1em;
          vertical-align: -.1em }
.scenes { display: grid; grid-template-columns: repeat(4, 1fr); gap: .3rem }
.scenes img { width: 100%; display: block }
.scenes p { grid-column: 1 / -1; margin: 0 0 1rem }
"""
_LINE_COLOURS = ("#1f6fb4", "#d1495b", "#3a7d44", "#8d6a9f")
_WIDTH, _HEIGHT, _MARGIN = 640.0, 300.0, 50.0


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
    """Returns a table; floats have one digit after the point."""

    def line(tag: str, values: Sequence[object]) -> str:
        cells = (f"{v:.1f}" if isinstance(v, float) else str(v) for v in values)
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    return f"<table>{line('th', header)}{''.join(line('td', row) for row in rows)}</table>"


def picture(image: UInt8[np.ndarray, "H W 3"], alt: str = "") -> str:
    """Returns the image, embedded."""
    data = base64.b64encode(visualize.png(image)).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def legend(names: Sequence[str], colours: UInt8[np.ndarray, "N 3"]) -> str:
    """Returns a line that says which colour is which."""
    items = (
        f'<span class="swatch" style="background:rgb({r},{g},{b})"></span>{html.escape(name)}'
        for name, (r, g, b) in zip(names, colours.tolist(), strict=True)
    )
    return f"<p>{''.join(items)}</p>"


def scenes(
    header: Sequence[str], rows: Sequence[tuple[Sequence[UInt8[np.ndarray, "H W 3"]], str]]
) -> str:
    """Returns rows of four pictures, each with a line of text below."""
    cells = [f"<b>{html.escape(name)}</b>" for name in header]
    for images, text in rows:
        cells += [picture(image, text) for image in images]
        cells.append(f"<p>{html.escape(text)}</p>")
    return f'<div class="scenes">{"".join(cells)}</div>'


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
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" width="{_WIDTH:g}" role="img" '
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
        f'<text x="{x}" y="{y}" font-size="12" text-anchor="{anchor}" fill="{fill}">'
        f"{html.escape(text)}</text>"
    )


def write(path: Path, content: str) -> None:
    """Writes the report."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
