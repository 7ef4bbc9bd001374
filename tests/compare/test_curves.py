import math

import pytest

from groupvit_jax.compare.curves import (
    UNFINISHED_COLOUR,
    curve_chart,
    learning_curves,
    rank_colours,
    visible_range,
)
from groupvit_jax.compare.groups import compare
from tests.compare.folders import MIOU, run


def with_points(settings, points, seed=0, state="finished"):
    written = [{"step": step, "validation/miou": value} for step, value in points]
    return run(settings, 0.0, seed, state)._replace(records=written)


def test_a_groups_curve_is_the_mean_of_its_seeds_with_a_band():
    runs = [
        with_points({"a": 1}, [(10, 0.1), (20, 0.3)], 0),
        with_points({"a": 1}, [(10, 0.3), (20, 0.5)], 1),
        with_points({"a": 2}, [(10, 0.2), (20, 0.2)]),
    ]
    curves = learning_curves(compare(runs, MIOU), "validation/miou", 100.0)
    assert list(curves.series) == ["a=2", "a=1"]  # the best is drawn last, on top
    assert curves.series["a=1"] == [(10.0, pytest.approx(20)), (20.0, pytest.approx(40))]
    half = 10 * math.sqrt(2)
    assert curves.bands["a=1"][0] == pytest.approx((10.0, 20 - half, 20 + half))
    assert list(curves.bands) == ["a=1"]
    assert [curves.colours["a=1"], curves.colours["a=2"]] == rank_colours(2)


def test_only_steps_that_all_seeds_have_are_averaged():
    runs = [
        with_points({"a": 1}, [(10, 0.1), (20, 0.3)], 0),
        with_points({"a": 1}, [(5, 0.3), (20, 0.5)], 1),
    ]
    curves = learning_curves(compare(runs, MIOU), "validation/miou")
    assert list(curves.series.values()) == [[(20.0, pytest.approx(0.4))]]


def test_runs_that_are_not_compared_are_drawn_grey_below():
    runs = [
        with_points({"a": 1}, [(10, 0.1)]),
        with_points({"a": 2}, [(5, 0.3), (10, math.nan)], state="failed"),
    ]
    curves = learning_curves(compare(runs, MIOU), "validation/miou")
    (name, points), _ = curves.series.items()
    assert name.endswith("(failed)")
    assert points == [(5.0, 0.3)]
    assert curves.colours[name] == UNFINISHED_COLOUR


def test_long_curves_are_means_of_stretches_of_equal_length():
    points = [(step, float(step)) for step in range(1, 10_001)]
    curves = learning_curves(compare([with_points({"a": 1}, points)], MIOU), "validation/miou")
    (found,) = curves.series.values()
    assert len(found) == 200
    assert found[0] == (50.0, pytest.approx(25.5))
    assert found[-1] == (10_000.0, pytest.approx(9975.5))


def test_what_lies_far_beyond_all_else_is_cut_off_and_said():
    usual = [1.0 + i / 100 for i in range(100)]
    low, high, is_cut = visible_range([*usual, 1e6])
    assert is_cut
    assert low < 1.0
    assert 1.99 < high < 10
    low, high, is_cut = visible_range(usual)
    assert not is_cut
    assert low < 1.0 < 1.99 < high


@pytest.mark.parametrize("values", [[0.5], [0.0], [2.0] * 30 + [3.0]])
def test_a_range_is_never_empty(values):
    low, high, _ = visible_range(values)
    assert low < min(values) <= max(values) < high


def test_a_metric_that_nobody_recorded_is_said():
    comparison = compare([run({"a": 1}, 0.3)], MIOU)
    chart = curve_chart("loss", learning_curves(comparison, "loss"))
    assert "loss: nothing recorded" in chart
