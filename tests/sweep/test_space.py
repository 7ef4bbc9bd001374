import math

import pytest

from groupvit_jax.sweep import chain, choice, log_uniform, product, sample, sweep, uniform, zip_

A = sweep("a", [1, 2])
B = sweep("b", "xy")


def test_product_has_every_combination_the_last_fastest():
    assert product([A, B]) == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]
    assert product([]) == [{}]


def test_zip_pairs_and_chain_appends():
    assert zip_([A, B]) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    assert chain([A, B]) == [{"a": 1}, {"a": 2}, {"b": "x"}, {"b": "y"}]
    assert product([zip_([A, B]), sweep("c", [0])])[1] == {"a": 2, "b": "y", "c": 0}


def test_generators_are_sweeps_too():
    assert product([({"a": i} for i in range(2)), B]) == product([sweep("a", [0, 1]), B])


def test_what_cannot_be_combined_is_refused():
    with pytest.raises(ValueError, match="a: set by two"):
        product([A, A])
    with pytest.raises(ValueError, match=r"sweeps of \[2, 3\] trials found, expected equal"):
        zip_([A, sweep("b", "xyz")])


def test_samples_are_a_function_of_their_arguments():
    rates = {"rate": log_uniform(1e-4, 1e-2)}
    few, many = sample(rates, 5, seed=1), sample(rates, 10, seed=1)
    assert few == many[:5]
    assert few != sample(rates, 5, seed=2)
    both = sample({"width": choice([16, 32]), **rates}, 5, seed=1)
    assert [trial["rate"] for trial in both] == [trial["rate"] for trial in few]


def test_samples_have_their_distributions():
    trials = sample(
        {"log": log_uniform(1e-4, 1e-2), "flat": uniform(0.0, 2.0), "word": choice(["x", "y"])},
        2000,
    )
    logs = [math.log10(trial["log"]) for trial in trials]
    assert min(logs) >= -4
    assert max(logs) <= -2
    assert abs(sum(logs) / 2000 + 3) < 0.05
    assert abs(sum(trial["flat"] for trial in trials) / 2000 - 1) < 0.05
    assert abs([trial["word"] for trial in trials].count("x") - 1000) < 150
    assert all(float(f"{trial['log']:.3g}") == trial["log"] for trial in trials)


@pytest.mark.parametrize(
    "wrong", [lambda: log_uniform(0.0, 1.0), lambda: uniform(2.0, 1.0), lambda: choice([])]
)
def test_distributions_without_a_range_are_refused(wrong):
    with pytest.raises(ValueError, match=r"found, expected"):
        wrong()
