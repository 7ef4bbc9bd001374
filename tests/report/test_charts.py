"""What is drawn, read from the SVG.

Matplotlib places the axes; the tests find the scale from the labels of the axis, so that they
compare the data drawn with the data given.
"""

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from groupvit_jax.report.charts import (
    Axis,
    Bar,
    Line,
    Panel,
    cut,
    effect_panels,
    interval_bars,
    line_chart,
    parallel_coordinates,
    ramp,
    ticks,
)


class Drawing:
    """A chart's SVG."""

    def __init__(self, chart):
        self.root = ElementTree.fromstring(chart).find("svg")
        self.parents = {child: parent for parent in self.root.iter() for child in parent}

    def texts(self):
        """Content and place of each text."""
        return [
            (t.text, float(t.get("x")), float(t.get("y"))) for t in self.root.iter("text") if t.text
        ]

    def named(self, name):
        """The elements that show a name when pointed at."""
        return [self.parents[t] for t in self.root.iter("title") if t.text == name]

    def paths(self, colour, filled=False):
        """Points of the lines or areas of a colour."""
        style = f"{'fill' if filled else 'stroke'}: {colour}"
        paths = (
            p for p in self.root.iter("path")
            if re.search(style + "(;|$)", p.get("style", "")) and p.get("clip-path")
        )  # fmt: skip
        found = [points(path.get("d")) for path in paths]
        return [path for path in found if len(path) > 1]  # one point shows nothing

    def scale(self, axis, among=None):
        """Converts places in pixels into values, from the labels at the axis."""
        numbers = [(t, x, y) for t, x, y in self.texts() if re.fullmatch(r"-?[\d.]+(e-\d+)?", t)]
        if axis == "x":
            row = max(y for _, _, y in numbers)
            marks = [(x, float(t)) for t, x, y in numbers if abs(y - row) < 1]
        else:
            column = min(x for _, x, _ in numbers)
            marks = [(y - 4.55, float(t)) for t, x, y in numbers if abs(x - column) < 1]
        (a, b) = np.polyfit(*np.transpose(marks), 1)
        return lambda place: a * np.asarray(place) + b


def points(path):
    return np.array([float(n) for n in re.findall(r"-?[\d.]+", path)]).reshape(-1, 2)


def bars(*values, std=math.nan, dots=()):
    return [Bar(f"n{i}", f"v{i}", v, std, dots, f"#12345{i}") for i, v in enumerate(values)]


def bar_ends(chart, count):
    """Beginning and end of each bar, in values."""
    drawing = Drawing(chart)
    to_value = drawing.scale("x")
    shapes = [drawing.paths(f"#12345{i}", filled=True)[0][:, 0] for i in range(count)]
    return [(to_value(x.min()), to_value(x.max())) for x in shapes]


def test_bars_begin_at_nought_where_that_shows_the_differences():
    chart = interval_bars("t", bars(40.0, 10.0), "loss")
    assert np.ravel(bar_ends(chart, 2)) == pytest.approx([0, 40, 0, 10], abs=0.1)
    assert "not at 0" not in chart


def test_bars_that_begin_elsewhere_say_so_and_fade():
    chart = interval_bars("t", bars(40.0, 39.0), "loss")
    assert np.ravel(bar_ends(chart, 2)) == pytest.approx([38.7, 40, 38.7, 39], abs=0.01)
    assert "the axis begins at 38.7, not at 0" in chart
    veils = Drawing(chart).paths("var\\(--page\\)", filled=True)
    assert len(veils) > 5
    assert not Drawing(interval_bars("t", bars(40.0, 10.0), "x")).paths("var\\(--page\\)", True)


@pytest.mark.parametrize("values", [(0.0, 0.0), (-1.0, 2.0), (5.0,), (-2.0, -3.0), (1e-9,)])
def test_bars_of_any_values_stay_inside(values):
    drawing = Drawing(interval_bars("t", bars(*values, std=0.5, dots=[values[0] - 0.3]), "x"))
    drawn = [p for i, _ in enumerate(values) for p in drawing.paths(f"#12345{i}", True)]
    drawn += drawing.paths("currentColor")
    dots = [(float(u.get("x")), float(u.get("y"))) for u in drawing.root.iter("use")]
    for x, y in np.concatenate([*drawn, dots]):
        assert 0 <= x <= float(drawing.root.get("width"))
        assert 0 <= y <= float(drawing.root.get("height"))


def test_spread_and_seeds_are_drawn_at_their_values():
    drawing = Drawing(interval_bars("t", bars(4.0, std=1.5, dots=[3.0, 5.0]), "x"))
    to_value = drawing.scale("x")
    whiskers = [p for p in drawing.paths("currentColor") if p[0, 1] == p[1, 1]]
    assert to_value(whiskers[0][:, 0]) == pytest.approx([2.5, 5.5], abs=0.03)
    for value in (3.0, 5.0):
        (dot,) = drawing.named(f"{value:g}")
        assert to_value(float(next(dot.iter("use")).get("x"))) == pytest.approx(value, abs=0.03)
    none = Drawing(interval_bars("t", bars(4.0), "x"))
    assert not [p for p in none.paths("currentColor") if p[0, 1] == p[1, 1]]


def test_the_first_mean_is_marked_for_all_bars():
    drawing = Drawing(interval_bars("t", bars(4.0, 2.0), "x"))
    dashed = [p for p in drawing.root.iter("path") if "dasharray" in p.get("style", "")]
    (x, y), (x2, y2) = points(dashed[0].get("d"))
    assert x == x2
    assert drawing.scale("x")(x) == pytest.approx(4.0, abs=0.03)
    assert abs(y2 - y) > 70


def test_a_long_name_is_cut_and_whole_when_pointed_at():
    name = "setting=" + 40 * "long "
    drawing = Drawing(interval_bars("t", [bars(1.0)[0]._replace(name=name)], "x"))
    (label,) = (t for t, _, _ in drawing.texts() if t.startswith("setting="))
    assert label.endswith("…")
    assert len(label) < 90
    assert drawing.named(re.sub(r"\s+", " ", name))


def test_lines_pass_their_heights_and_leave_out_what_is_not_known():
    axes = [Axis("a<b", {"0": 0.0, "1": 1.0}), Axis("b", {}), Axis("metric", {"9": 0.5})]
    lines = [
        Line("one", [0.0, None, 1.0], "#111111", 2),
        Line("two", [1.0, 0.5, 0.0], "#222222", 2),
    ]
    drawing = Drawing(parallel_coordinates("t", axes, lines))
    upright = sorted((p for p in drawing.paths("currentColor") if p[0, 0] == p[1, 0]),
                     key=lambda p: p[0, 0])  # fmt: skip
    places = [p[0, 0] for p in upright]
    bottom, top = upright[0][:, 1].max(), upright[0][:, 1].min()
    (one,), (two,) = drawing.paths("#111111"), drawing.paths("#222222")
    ends = [(places[0], bottom), (places[2], top)]
    assert np.ravel(one[[0, -1]]) == pytest.approx(np.ravel(ends), abs=0.1)
    knots = [(places[0], top), (places[1], (top + bottom) / 2), (places[2], bottom)]
    assert np.ravel(two[::3]) == pytest.approx(np.ravel(knots), abs=0.1)
    assert {"a<b", "b", "metric", "9"} <= {text for text, _, _ in drawing.texts()}
    assert drawing.named("one")


def test_panels_show_each_value_and_join_numbers_only():
    data = [("low", 1.0, 0.25), ("high", 2.0, 0.25)]
    panels = [Panel("w", data, True), Panel("k", data, False)]
    drawing = Drawing(effect_panels("t", panels, "#123456"))
    to_value = drawing.scale("y")
    (joined,) = drawing.paths("#123456")
    assert to_value(joined[:, 1]) == pytest.approx([1, 2], abs=0.02)
    spreads = [p for p in drawing.paths("currentColor") if p[0, 0] == p[1, 0]]
    found = sorted(tuple(np.sort(to_value(p[:, 1])).round(2)) for p in spreads)
    assert np.ravel(found) == pytest.approx(2 * [0.75, 1.25] + 2 * [1.75, 2.25], abs=0.02)
    for name, value in (("w=low", 1.0), ("k=high", 2.0)):
        (dot,) = drawing.named(f"{name}: {value:g}")
        assert to_value(float(next(dot.iter("use")).get("y"))) == pytest.approx(value, abs=0.02)
    single = Drawing(effect_panels("t", [Panel("w", [("0", 1.0, math.nan)], True)], "#123456"))
    assert not [p for p in single.paths("currentColor") if p[0, 0] == p[1, 0]]


def test_curves_are_drawn_at_their_values_and_leave_out_what_is_not_finite():
    series = {"train": [(0.0, 2.0), (5.0, math.nan), (10.0, 1.0)], "broken": [(1.0, math.inf)]}
    drawing = Drawing(line_chart("loss", series))
    (line,) = drawing.named("train")
    drawn = points(line.find("path").get("d"))
    assert drawing.scale("x")(drawn[:, 0]) == pytest.approx([0, 10], abs=0.05)
    assert drawing.scale("y")(drawn[:, 1]) == pytest.approx([2, 1], abs=0.02)
    legend = [text for text, _, _ in drawing.texts()]
    assert "train" in legend
    assert "broken" not in legend


def test_curves_of_a_range_with_bands_and_colours_given():
    chart = line_chart(
        "loss",
        {"train <1>": [(0.0, 3.0), (10.0, 2.0)], "one point": [(5.0, 2.5)]},
        bands={"train <1>": [(0.0, 2.9, 3.1), (10.0, 1.9, 2.1)]},
        colours={"train <1>": "#111111", "one point": "#222222"},
        y_range=(2.0, 3.0),
    )
    drawing = Drawing(chart)
    to_value = drawing.scale("y")
    (line,) = drawing.paths("#111111")
    (band,) = drawing.paths("#111111", filled=True)
    assert to_value(line[:, 1]) == pytest.approx([3, 2], abs=0.01)
    drawn = {round(float(to_value(y)), 1) for y in band[:, 1]}
    assert drawn == {2.9, 3.1, 1.9, 2.1}
    window = next(drawing.root.iter("rect"))  # of the clip path: the range fills the chart
    edges = float(window.get("y")) + np.array([0, float(window.get("height"))])
    assert to_value(edges) == pytest.approx([3, 2], abs=0.01)
    (dot,) = drawing.named("one point")
    assert to_value(float(next(dot.iter("use")).get("y"))) == pytest.approx(2.5, abs=0.01)
    assert "one point" not in [text for text, _, _ in drawing.texts()]  # no legend in the chart


def test_a_chart_without_points_says_so():
    assert "no points yet" in line_chart("mIoU", {"validation": []})


def test_names_are_shown_as_they_are():
    name = "$x^2$ <b>&amp; 犬"
    drawing = Drawing(line_chart("loss <1>", {name: [(0.0, 1.0), (1.0, 2.0)]}))
    assert name in [text for text, _, _ in drawing.texts()]
    assert drawing.named(name)
    assert drawing.root.get("aria-label") == "loss <1>"


def test_charts_follow_the_page():
    chart = line_chart("loss", {"train": [(0.0, 1.0), (1.0, 2.0)]})
    other = line_chart("mIoU", {"train": [(0.0, 1.0), (1.0, 2.0)]})
    assert "currentColor" in chart  # light or dark
    for foreign in ("#000000", "font-family", "<style", "http", "\n"):
        assert foreign not in chart
    ids = [set(re.findall(r' id="([^"]+)"', each)) for each in (chart, other)]
    assert ids[0]
    assert not ids[0] & ids[1]
    referred = re.findall(r'url\(#(\w+)\)|href="#(\w+)"', chart)
    assert {a or b for a, b in referred} <= ids[0]


def test_the_ramp_ends_in_its_colours():
    assert [ramp(at) for at in (-1.0, 0.0, 1.0, 2.0)] == ["#534ac8"] * 2 + ["#f2a01e"] * 2


def test_long_texts_are_cut():
    assert (cut("abcdef", 6), cut("abcdef", 4)) == ("abcdef", "abc…")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 10.0, [0, 2, 4, 6, 8, 10]),
        (0.27, 0.34, [0.28, 0.3, 0.32, 0.34]),
        (-1.0, 1.0, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round_numbers_inside_the_range(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_ticks_of_a_logarithmic_scale_are_powers_of_ten_and_of_few_also_parts():
    assert ticks(2e-5, 1.5, log=True) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1])
    assert ticks(0.01, 1.0, log=True) == pytest.approx([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1])
