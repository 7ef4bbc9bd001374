import math
import re

import pytest

from groupvit_jax.report.charts import (
    Axis,
    Bar,
    Line,
    Panel,
    cut,
    effect_panels,
    interval_bars,
    parallel_coordinates,
    ramp,
)
from tests.report.test_document import parse


def bars(*values, std=math.nan, dots=()):
    return [Bar(f"n{i}", f"{v}", v, std, dots, "#123456") for i, v in enumerate(values)]


def widths(chart):
    return [float(w) for w in re.findall(r'<rect x="[^"]+" y="[^"]+" width="([^"]+)"', chart)]


def test_bars_begin_at_nought_where_that_shows_the_differences():
    chart = interval_bars("t", bars(40.0, 10.0), "loss")
    first, second = widths(chart)
    assert first == pytest.approx(4 * second, rel=0.01)
    assert "not at 0" not in chart


def test_bars_that_begin_elsewhere_say_so_and_fade():
    chart = interval_bars("t", bars(40.0, 39.0), "loss")
    first, second = widths(chart)
    assert first > 2 * second
    assert "the axis begins at 38.7, not at 0" in chart
    assert chart.count("url(#faded)") == 2


@pytest.mark.parametrize("values", [(0.0, 0.0), (-1.0, 2.0), (5.0,), (-2.0, -3.0), (1e-9,)])
def test_bars_of_any_values_stay_inside(values):
    chart = interval_bars("t", bars(*values, std=0.5, dots=[values[0] - 0.3]), "x")
    parse(chart)
    numbers = re.findall(r'<(?:rect x|circle cx)="([^"]+)"', chart)
    assert all(0 <= float(number) <= 640 for number in numbers)
    ends = [
        float(x) + float(w) for x, w in re.findall(r'<rect x="(\S+)" y="\S+" width="(\S+)"', chart)
    ]
    assert all(end <= 640 for end in ends)
    assert all(width > 0 for width in widths(chart))


def test_spread_and_seeds_are_drawn():
    chart = interval_bars("t", bars(4.0, std=1.0, dots=[3.0, 5.0]), "x")
    assert chart.count("<circle") == 2
    assert "<title>3</title>" in chart
    assert "stroke-width" in chart


def test_lines_pass_their_heights_and_leave_out_what_is_not_known():
    axes = [Axis("a<b", {"0": 0.0, "1": 1.0}), Axis("b", {}), Axis("metric", {"9": 0.5})]
    lines = [
        Line("one", [0.0, None, 1.0], "#111111", 2),
        Line("two", [1.0, 0.5, 0.0], "#222222", 2),
    ]
    chart = parallel_coordinates("t", axes, lines)
    first, second = re.findall(r'<path d="(M[^"]+C[^"]+)"', chart)
    assert first.count("C") == 1
    assert second.count("C") == 2
    start, end = float(first.split(" ")[1].partition("C")[0]), float(first.split(" ")[-1])
    assert start > end  # SVG's y points down
    for expected in ("a<b", "metric", "one", "9"):
        assert expected in parse(chart)


def test_panels_show_each_value_and_join_numbers_only():
    points = [("0", 1.0, 0.1), ("1", 2.0, 0.1)]
    chart = effect_panels("t", [Panel("w", points, True), Panel("k", points, False)], "#123456")
    assert chart.count("<polyline") == 1
    assert chart.count("<circle") == 4
    parse(effect_panels("t", [Panel("w", [("0", 1.0, math.nan)], True)], "#123456"))


def test_the_ramp_ends_in_its_colours():
    assert [ramp(at) for at in (-1.0, 0.0, 1.0, 2.0)] == ["#534ac8"] * 2 + ["#f2a01e"] * 2


def test_long_texts_are_cut():
    assert (cut("abcdef", 6), cut("abcdef", 4)) == ("abcdef", "abc…")
