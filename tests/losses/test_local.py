import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from groupvit_jax import losses, parallel
from tests.bounds import DRAWS, largest_changes, nudged
from tests.losses.differences import central_differences
from tests.losses.test_contrastive import logsumexp, mesh_of

B, G, W, D = 16, 3, 5, 8
SCALE = jnp.log(1 / 0.07)


def reference(segments, words, logit_scale, mask, ids=None, seekers="both"):
    """The loss from all scores of segments [B, G, D] and words [B, W, D], one pair at a time."""
    segments, words = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (segments, words))
    scale = min(np.exp(logit_scale), 100)
    with_words = np.flatnonzero(mask.any(1))
    to_text, to_image = np.full((2, len(words), len(words)), -np.inf)
    for i in range(len(words)):
        for j in with_words:
            scores = scale * segments[i] @ words[j, mask[j]].T
            to_text[i, j] = scores.max(1).mean()
            to_image[i, j] = scores.max(0).mean()
    if seekers == "words":
        to_text = to_image
    ids = np.arange(len(words)) if ids is None else np.asarray(ids)
    total = 0
    for k in with_words:
        same = [other for other in with_words if ids[other] == ids[k]]
        total += logsumexp(to_text[k, with_words], 0) - to_text[k, same].mean()
        total += logsumexp(to_image[:, k], 0) - to_image[same, k].mean()
    return total / 2 / max(len(with_words), 1)


@functools.cache
def compiled(num_devices=1, exchange="all_gather", block_size=256, with_ids=False, seekers="both"):
    """A jitted loss with gradients and metrics."""
    pairing = losses.Pairing("softmax", parallel.BATCH_AXES, exchange, block_size)

    def on_device(segments, words, scale, mask, ids):
        given = ids if with_ids else None
        return losses.local_alignment_loss(segments, words, mask, scale, pairing, given, seekers)

    by_row, alike = PartitionSpec(parallel.BATCH_AXES), PartitionSpec()
    total = jax.shard_map(
        on_device,
        mesh=mesh_of(num_devices),
        in_specs=(by_row, by_row, alike, by_row, by_row),
        out_specs=alike,
    )
    return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))


def arguments(batch=B):
    rng = np.random.default_rng(0)
    segments = rng.normal(size=(batch, G, D)).astype(np.float32)
    # Words resemble the segments of their images; some texts have fewer, some none.
    words = segments[:, rng.integers(G, size=W)] + rng.normal(size=(batch, W, D))
    mask = np.arange(W) < rng.integers(1, W + 1, size=batch)[:, None]
    mask[3::7] = False
    ids = rng.integers(0, batch // 2, size=batch)
    return segments, words.astype(np.float32), SCALE, mask, ids


@functools.cache
def finite_differences(with_ids, seekers):
    """The reference's value and gradient in float64."""
    *flat, mask, ids = arguments()
    flat = [np.array(x, np.float64) for x in flat]
    ids = ids if with_ids else None
    value_of = functools.partial(reference, mask=mask, ids=ids, seekers=seekers)
    return value_of(*flat), central_differences(value_of, flat)


@functools.cache
def bounds(with_ids, seekers):
    """How far value and gradients go when the arguments move in their last places.

    Rounding on the way to them acts alike: a score is a sum of D products, divided by two norms,
    sums of D squares each, and scaled, 3 D + 6 = 30 roundings of up to half a place.
    """
    *flat, mask, ids = arguments()
    run = compiled(with_ids=with_ids, seekers=seekers)
    near = [run(*nudged(flat, units, seed), mask, ids) for seed, units in [(0, 0), *DRAWS]]
    return largest_changes(*([value, *gradients] for (value, _), gradients in near))


WAYS = [
    pytest.param((1,), id="one device"),
    pytest.param((1, "all_gather", 1), id="one device, example by example"),
    pytest.param((8,), id="all_gather"),
    pytest.param((4, "all_gather", 10), id="all_gather, blocks"),
    pytest.param((8, "ring"), id="ring"),
    pytest.param((4, "ring", 10), id="ring, blocks"),
]


@pytest.mark.parametrize("seekers", losses.LOCAL_SEEKERS)
@pytest.mark.parametrize("with_ids", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_value_and_gradients_equal_the_sum_over_pairs(way, with_ids, seekers):
    (value, _), gradients = compiled(*way, with_ids=with_ids, seekers=seekers)(*arguments())
    expected, expected_gradients = finite_differences(with_ids, seekers)
    assert value.dtype == jnp.float32
    pairs = zip((value, *gradients), (expected, *expected_gradients), strict=True)
    for (found, wanted), bound in zip(pairs, bounds(with_ids, seekers), strict=True):
        assert bound < 1e-4 * np.abs(wanted).max()
        np.testing.assert_allclose(found, wanted, rtol=0, atol=bound)


@pytest.mark.parametrize("way", WAYS)
def test_metrics_do_not_depend_on_the_way(way):
    (_, metrics), _ = compiled(*way)(*arguments())
    (_, expected), _ = compiled()(*arguments())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), metrics, expected)
    assert expected["texts_with_words"] == 14 / 16
    assert 1 / B < expected["image_to_text_accuracy"] <= 1


def test_masked_words_have_no_influence():
    segments, words, scale, mask, ids = arguments()
    value, gradients = compiled()(segments, words, scale, mask, ids)
    other = np.where(mask[..., None], words, 7.0)
    value_of_other, gradients_of_other = compiled()(segments, other, scale, mask, ids)
    np.testing.assert_array_equal(value[0], value_of_other[0])
    np.testing.assert_array_equal(gradients[0], gradients_of_other[0])
    assert not np.abs(gradients[1][~mask]).any()
    assert np.abs(gradients[1][mask]).max() > 1e-3


@pytest.mark.parametrize("num_devices", [1, 8])
def test_a_batch_without_words_has_no_loss(num_devices):
    segments, words, scale, mask, ids = arguments()
    (value, metrics), gradients = compiled(num_devices)(segments, words, scale, 0 * mask > 0, ids)
    assert value == 0
    assert set(map(float, metrics.values())) == {0}
    assert not any(np.abs(gradient).max() for gradient in gradients)


def test_each_segment_takes_its_best_word_and_each_word_its_best_segment():
    axes, all_count = jnp.eye(4), jnp.ones((2, 2), bool)
    segments, words = axes[jnp.array([[0, 1], [2, 3]])], axes[jnp.array([[0, 0], [2, 3]])]
    value, metrics = losses.local_alignment_loss(segments, words, all_count, jnp.zeros(()))
    assert metrics["image_to_text_accuracy"] == 1
    # Of image 0 the second segment finds no word; all the words find their segments.
    to_text = (np.log(np.exp(0.5) + 1) - 0.5 + np.log(np.e + 1) - 1) / 2
    to_image = np.log(np.e + 1) - 1
    np.testing.assert_allclose(value, (to_text + to_image) / 2, rtol=1e-6)


def test_with_words_as_seekers_a_segment_without_a_word_costs_nothing():
    axes, mask = jnp.eye(6), jnp.ones((2, 2), bool)
    words = axes[jnp.array([[0, 0], [2, 3]])]
    both, one_way = [], []
    for second in (0, 5):  # of image 0 the second segment is like a word, or like none
        segments = axes[jnp.array([[0, second], [2, 3]])]
        given = segments, words, mask, jnp.zeros(())
        both.append(losses.local_alignment_loss(*given)[0])
        one_way.append(losses.local_alignment_loss(*given, seekers="words")[0])
    assert one_way[0] == one_way[1]
    assert both[0] < both[1]


@pytest.mark.parametrize("exchange", losses.EXCHANGES)
@pytest.mark.parametrize("num_devices", [2, 8])
def test_scores_of_a_device_do_not_grow_with_the_devices(num_devices, exchange):
    """With 8 examples a device, 4 of which are compared with at once."""
    per_device, block = 8, 4
    given = arguments(num_devices * per_device)
    program = compiled(num_devices, exchange, block * W).lower(*given).compile().as_text()
    shapes = {tuple(map(int, s.split(","))) for s in re.findall(r"\w+\[([\d,]+)\]", program)}
    sizes = {int(np.prod(shape)) for shape in shapes}
    scores = per_device * G * block * W
    assert scores in sizes
    everyones_words = num_devices * per_device * W * D
    assert max(sizes) <= max(scores, everyones_words)
