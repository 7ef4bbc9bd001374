import pytest

from groupvit_jax.compare.groups import compare
from groupvit_jax.compare.metric import Metric
from groupvit_jax.compare.verdict import APART, NOISE, UNKNOWN, judge, p_equals, show_p
from tests.compare.folders import MIOU, compared, run

WON = {0.0: [0.410, 0.416, 0.402], 1.0: [0.460, 0.465, 0.471]}


def test_a_difference_far_beyond_the_seeds_is_told_with_all_its_figures():
    verdict = judge(compared(WON))
    assert verdict.kind == APART
    assert verdict.text == (
        "`local_weight=1` is first: 46.5 ± 0.6 % (n=3), 5.6 points ahead of the second, "
        "`local_weight=0` (40.9 ± 0.7 %, n=3). The difference is 10.9 of its standard errors "
        "(Welch's t, p < 0.001): not noise."
    )


def test_less_is_below():
    verdict = judge(compared(WON, Metric("validation/miou", "min", "")))
    assert "`local_weight=0` is first: 40.9 ± 0.7 % (n=3), 5.6 points below the second" in (
        verdict.text
    )


def test_a_difference_that_seeds_make_too_is_not_called_a_win():
    verdict = judge(compared({0.0: [0.40, 0.45, 0.42], 1.0: [0.41, 0.47, 0.43]}))
    assert verdict.kind == NOISE
    assert "may be noise" in verdict.text
    assert "points would have been needed to tell" in verdict.text
    assert "not noise" not in verdict.text


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({0.0: [0.4], 1.0: [0.5]}, "one seed each"),
        ({0.0: [0.4, 0.41], 1.0: [0.5]}, "one seed of `local_weight=1`"),
        ({0.0: [0.4], 1.0: [0.5, 0.51]}, "one seed of `local_weight=0`"),
        ({0.0: [0.4, 0.4], 1.0: [0.5, 0.5]}, "the seeds of each make no difference at all"),
    ],
)
def test_what_can_not_be_told_is_said(values, expected):
    verdict = judge(compared(values))
    assert verdict.kind == UNKNOWN
    assert "`local_weight=1` is first" in verdict.text
    assert f"Cannot tell whether that is noise: {expected}." in verdict.text


def test_a_tie():
    verdict = judge(compared({0.0: [0.4, 0.5], 1.0: [0.4, 0.5]}))
    assert verdict.kind == NOISE
    assert verdict.text.startswith("A tie: `local_weight=0` (45.0")
    assert judge(compared({0.0: [0.4], 1.0: [0.4]})).kind == UNKNOWN


def test_others_that_may_be_as_good_are_counted():
    alike = {float(i): [0.40 + i / 1000, 0.45, 0.42] for i in range(3)}
    assert "None of the other 1 can be told" not in judge(compared(alike)).text
    assert "The third can't be told from the first either." in judge(compared(alike)).text
    values = alike | {9.0: [0.100, 0.101, 0.102], 10.0: [0.090, 0.101, 0.102]}
    assert "1 of the other 3 can't be told from the first either." in judge(compared(values)).text
    many = alike | {float(i): [0.40, 0.45, 0.43] for i in range(10, 13)}
    assert "None of the other 4 can be told from the first either." in judge(compared(many)).text


def test_the_setting_that_does_most_is_named_where_it_is_more_than_noise():
    def of(change):
        return compare(
            [
                run({"a": a, "b": b}, 0.4 + change * b + 0.01 * seed, seed)
                for a in (0, 1) for b in (0, 1) for seed in (0, 1, 2)
            ],
            MIOU,
        )  # fmt: skip

    assert (
        "Over all else, `b` does most: 10.0 points from 0 to 1 (p < 0.001)." in judge(of(0.1)).text
    )
    assert "Over all else" not in judge(of(0.0)).text


def test_nothing_to_compare():
    assert "is alone" in judge(compared({0.0: [0.4, 0.5]})).text
    nothing = compare([run({"a": 1}, 0.3, state="running")], MIOU)
    assert judge(nothing).kind == UNKNOWN
    assert "no run has finished" in judge(nothing).text


@pytest.mark.parametrize(
    ("p", "shown"), [(0.0001, "<0.001"), (0.0123, "0.012"), (0.5, "0.50"), (float("nan"), "")]
)
def test_p_as_text(p, shown):
    assert show_p(p) == shown
    assert p_equals(0.0123) == "p = 0.012"
