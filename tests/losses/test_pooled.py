import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from groupvit_jax import losses, parallel
from groupvit_jax.losses.pooled import top_mean
from tests.losses.differences import central_differences
from tests.losses.test_contrastive import logsumexp, mesh_of

B, G, W, D, COUNT = 8, 4, 3, 5, 2
SCALE = np.log(1 / 0.07)


def reference(segments, words, captions, logit_scale, mask, ids=None):
    """The loss from pooled embeddings, one pair at a time."""
    image = np.sort(segments, axis=1)[:, -COUNT:].mean(axis=1)
    text = np.stack(
        [w[m].max(axis=0) if m.any() else c for w, m, c in zip(words, mask, captions, strict=True)]
    )
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    logits = min(np.exp(logit_scale), 100) * image @ text.T
    same = np.eye(B, dtype=bool) if ids is None else ids[:, None] == ids
    total = sum(
        logsumexp(of_one, 0) - of_one[own].mean()
        for table in (logits, logits.T)
        for of_one, own in zip(table, same, strict=True)
    )
    return total / 2 / B


def arguments():
    rng = np.random.default_rng(0)
    shapes = (B, G, D), (B, W, D), (B, D)
    mask = np.arange(W) < rng.integers(1, W + 1, size=B)[:, None]
    mask[2] = False
    return [*(rng.normal(size=s) for s in shapes), SCALE], mask, rng.integers(0, B // 2, B)


@functools.cache
def finite_differences(with_ids):
    flat, mask, ids = arguments()
    flat = [np.array(x, np.float64) for x in flat]
    value_of = functools.partial(reference, mask=mask, ids=ids if with_ids else None)
    return value_of(*flat), central_differences(value_of, flat)


@pytest.mark.parametrize("with_ids", [False, True])
@pytest.mark.parametrize(
    ("devices", "exchange"), [(1, "all_gather"), (8, "all_gather"), (8, "ring")]
)
def test_value_and_gradients_equal_the_sum_over_pairs(devices, exchange, with_ids):
    pairing = losses.Pairing("softmax", parallel.BATCH_AXES, exchange)

    def on_device(segments, words, captions, scale, mask, ids):
        given = ids if with_ids else None
        return losses.pooled_loss(segments, words, mask, captions, scale, COUNT, pairing, given)

    by_row, alike = PartitionSpec(parallel.BATCH_AXES), PartitionSpec()
    total = jax.shard_map(
        on_device,
        mesh=mesh_of(devices),
        in_specs=(by_row, by_row, by_row, alike, by_row, by_row),
        out_specs=alike,
    )
    flat, mask, ids = arguments()
    compute = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2, 3), has_aux=True))
    (value, metrics), gradients = compute(*map(jnp.float32, flat), mask, ids)
    expected, expected_gradients = finite_differences(with_ids)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        size = np.abs(wanted).max()
        assert size > 1e-3
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * size)
    assert 0 <= metrics["image_to_text_accuracy"] <= 1


def test_fewer_tokens_than_values_are_all_pooled():
    tokens = jnp.array([[[1.0], [4.0], [2.0]], [[5.0], [7.0], [9.0]]])
    mask = jnp.array([[True, True, False], [False, False, False]])
    np.testing.assert_array_equal(top_mean(tokens, mask, 1), [[4.0], [0.0]])
    np.testing.assert_array_equal(top_mean(tokens, mask, 7), [[2.5], [0.0]])
