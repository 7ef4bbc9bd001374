import math

import numpy as np
import pytest
from scipy import stats

from groupvit_jax.compare.statistics import holm, main_effects, mean_and_std, welch

A, B = np.array([46.0, 46.5, 47.1]), np.array([40.9, 41.6, 40.2, 41.1])


def test_mean_and_deviation_of_a_sample():
    mean, std = mean_and_std(np.array([1.0, 2.0, 6.0]))
    assert mean == 3.0
    assert std == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    mean, std = mean_and_std(np.array([2.0]))
    assert mean == 2.0
    assert math.isnan(std)


def test_welch_is_what_its_equations_give():
    found = welch(A, B)
    share_a = sum((A - A.mean()) ** 2) / 2 / 3
    share_b = sum((B - B.mean()) ** 2) / 3 / 4
    error = math.sqrt(share_a + share_b)
    freedom = (share_a + share_b) ** 2 / (share_a**2 / 2 + share_b**2 / 3)
    assert found.value == pytest.approx(A.mean() - B.mean())
    assert found.error == pytest.approx(error)
    assert found.t == pytest.approx(found.value / error)
    assert found.p == pytest.approx(2 * stats.t.sf(found.t, freedom))
    assert found.p == pytest.approx(stats.ttest_ind(A, B, equal_var=False).pvalue)
    # Exactly as much as is needed is exactly at the level.
    moved = welch(A - found.value + found.needed, B)
    assert moved.p == pytest.approx(0.05)


@pytest.mark.parametrize("alone", [A[:1], B[:1]])
def test_one_seed_tells_nothing(alone):
    for pair in ((A, alone), (alone, A)):
        found = welch(*pair)
        assert math.isnan(found.p)
        assert math.isnan(found.error)
        assert found.value == pytest.approx(pair[0].mean() - pair[1].mean())


def test_seeds_that_make_no_difference_tell_nothing():
    found = welch(np.array([2.0, 2.0]), np.array([1.0, 1.0]))
    assert (found.value, found.error) == (1.0, 0.0)
    assert math.isnan(found.p)


def test_holm_by_hand():
    assert holm([0.01, 0.04, math.nan, 0.03]) == pytest.approx(
        [0.03, 0.06, math.nan, 0.06], nan_ok=True
    )
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def sweep(rng, count, seeds):
    """Samples of pure noise, the one with the highest mean first."""
    samples = rng.normal(size=(count, seeds))
    return samples[np.argsort(-samples.mean(axis=1))]


@pytest.mark.parametrize(("count", "seeds"), [(2, 3), (20, 3)])
def test_noise_is_seldom_called_a_difference(count, seeds):
    rng = np.random.default_rng(0)
    second, any_other = 0, 0
    for _ in range(200):
        first, *others = sweep(rng, count, seeds)
        p = [welch(first, other).p for other in others]
        second += p[0] < 0.05
        any_other += min(holm(p[1:]), default=1.0) < 0.05
    assert second / 200 < 0.07
    assert any_other / 200 < 0.07


def product(weights=("0", "1"), rates=("a", "b", "c"), seeds=2):
    rng = np.random.default_rng(1)
    return {
        (weight, rate): 10 * float(weight) + ord(rate) + rng.normal(size=seeds)
        for weight in weights
        for rate in rates
    }


def test_main_effects_by_hand():
    samples = product()
    weight, rate = main_effects(samples, [["0", "1"], ["a", "b", "c"]])
    by_hand = [np.mean([samples[w, r] for r in "abc"]) for w in "01"]
    assert [level.mean for level in weight.levels] == pytest.approx(by_hand)
    assert weight.range == pytest.approx(by_hand[1] - by_hand[0])
    variance = np.mean([samples[key].var(ddof=1) for key in samples])
    assert weight.levels[0].error == pytest.approx(math.sqrt(variance / 6))
    # Of two values Tukey's test is the t test.
    t = weight.range / math.sqrt(2 * variance / 6)
    assert weight.p == pytest.approx(2 * stats.t.sf(t, 6), rel=1e-3)
    assert rate.range == pytest.approx(rate.levels[2].mean - rate.levels[0].mean)
    assert rate.levels[0].error == pytest.approx(math.sqrt(variance / 4))


def test_main_effects_count_each_combination_once_however_many_seeds():
    samples = {("0", "a"): np.array([0.0] * 9), ("0", "b"): np.array([2.0])}
    samples |= {("1", "a"): np.array([1.0]), ("1", "b"): np.array([5.0])}
    weight, rate = main_effects(samples, [["0", "1"], ["a", "b"]])
    assert [level.mean for level in weight.levels] == [1.0, 3.0]
    assert [level.mean for level in rate.levels] == [0.5, 3.5]


def test_main_effects_without_repeated_seeds_have_no_error():
    weight, _ = main_effects(product(seeds=1), [["0", "1"], ["a", "b", "c"]])
    assert weight.range > 5
    assert math.isnan(weight.p)
    assert math.isnan(weight.levels[0].error)


def test_there_are_no_main_effects_of_a_part_of_the_combinations():
    samples = product()
    del samples["0", "a"]
    assert main_effects(samples, [["0", "1"], ["a", "b", "c"]]) == []
    assert main_effects({("0",): A, ("1",): B}, [["0", "1"]]) == []
    assert main_effects({}, []) == []
