from collections import Counter

import numpy as np
import pytest

from groupvit_jax.data.sources.mixture import ExampleOrder, MixedSource
from groupvit_jax.data.sources.pairs import WebDatasetSource
from tests.data.shard_files import write_pairs


def take(order: ExampleOrder, start: int, stop: int) -> list[int]:
    return [order[position] for position in range(start, stop)]


def test_every_epoch_has_each_sample_once_in_another_order():
    order = ExampleOrder([30, 1, 70], None, seed=0)
    epochs = [take(order, 101 * i, 101 * (i + 1)) for i in range(3)]
    assert all(sorted(epoch) == list(range(101)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert np.corrcoef(epochs[0], range(101))[0, 1] < 0.5, "the shuffle must be global"


def test_order_is_a_function_of_seed_and_position():
    first = take(ExampleOrder([50, 50], [1.0, 2.0], seed=1), 40, 80)
    assert take(ExampleOrder([50, 50], [1.0, 2.0], seed=1), 40, 80) == first
    assert take(ExampleOrder([50, 50], [1.0, 2.0], seed=2), 40, 80) != first


def test_seeds_have_no_epoch_in_common():
    orders = [ExampleOrder([20], None, seed) for seed in range(3)]
    epochs = [tuple(take(order, 20 * i, 20 * i + 20)) for order in orders for i in range(3)]
    assert len(set(epochs)) == len(epochs)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 1024, 1025])
def test_shuffle_is_a_permutation(size):
    order = ExampleOrder([size], None, seed=0)
    assert sorted(take(order, 3 * size, 4 * size)) == list(range(size))


@pytest.mark.parametrize("size", [5, 64])
def test_shuffle_is_uniform(size):
    """Over many epochs each sample is as often in the first half, and before its neighbour."""
    epochs = 300
    order = ExampleOrder([size], None, seed=1)
    drawn = np.array(take(order, 0, size * epochs)).reshape(epochs, size)
    places = np.argsort(drawn, axis=1)
    mean = places.mean(axis=0) / (size - 1)
    deviation = np.sqrt((size + 1) / (12 * (size - 1)) / epochs)
    assert np.abs(mean - 0.5).max() < 4.5 * deviation
    earlier = (np.diff(places, axis=1) > 0).mean(axis=0)
    assert np.abs(earlier - 0.5).max() < 4.5 * 0.5 / np.sqrt(epochs)


def test_a_single_sample_is_repeated():
    assert take(ExampleOrder([1], None, seed=0), 0, 4) == [0, 0, 0, 0]


@pytest.mark.parametrize("weights", [[0.7, 0.3], [1.0, 1.0, 1.0], [5.0, 0.01, 2.0]])
def test_every_stretch_follows_the_weights(weights):
    sizes = [13, 500, 40][: len(weights)]
    order = ExampleOrder(sizes, weights, seed=3)
    bounds = np.cumsum([0, *sizes])
    for start, stop in [(0, 100), (100, 1100), (10**9, 10**9 + 1000)]:
        drawn = np.histogram(take(order, start, stop), bounds)[0]
        expected = (stop - start) * np.array(weights) / sum(weights)
        assert np.abs(drawn - expected).max() < len(weights)


def test_with_weights_each_source_is_used_up_before_it_repeats():
    order = ExampleOrder([13, 100], [0.5, 0.5], seed=3)
    drawn = [index for index in take(order, 0, 130) if index < 13]
    assert len(drawn) == 65
    assert set(Counter(drawn).values()) == {5}


def test_mixed_source_finds_samples_in_their_sources(tmp_path):
    shards = [write_pairs(tmp_path / f"{i}.tar", r) for i, r in enumerate([range(3), range(3, 5)])]
    mixed = MixedSource([WebDatasetSource([shard]) for shard in shards])
    assert len(mixed) == 5
    assert [mixed[i]["captions"] for i in range(5)] == [[f"caption {i}"] for i in range(5)]
    assert mixed.locate(3) == f"{shards[1]}: 00003"
    assert [mixed.find(i) for i in (2, 3)] == [(0, 2), (1, 0)]
    assert [mixed.start(i) for i in (0, 1)] == [0, 3]
