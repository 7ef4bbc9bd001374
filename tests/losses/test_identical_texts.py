"""Texts of the same id as positives of each other's images."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from groupvit_jax import losses, parallel
from tests.losses.differences import central_differences
from tests.losses.test_contrastive import (
    BIAS,
    SCALE,
    B,
    K,
    assert_gradients,
    embeddings,
    logsumexp,
    magnitudes_of_both,
    mesh_of,
)


def positive_of(ids):
    return np.array([[t in own for t in ids.reshape(-1)] for own in ids.tolist()], float)


def reference(kind, image, text, ids, logit_scale, bias):
    """The loss of images [B, D], K texts each [B, K, D] and their ids, with explicit targets."""
    image, text = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
    B, K, D = text.shape
    logits = image @ text.reshape(B * K, D).T * min(np.exp(logit_scale), 100)
    positive = positive_of(ids)
    if kind == "sigmoid":
        return np.log1p(np.exp(-(2 * positive - 1) * (logits + bias))).sum() / (B * K)
    of_image = positive / positive.sum(1, keepdims=True)
    of_text = positive / positive.sum(0, keepdims=True)
    image_to_text = np.mean(logsumexp(logits, 1) - (of_image * logits).sum(1))
    text_to_image = np.mean(logsumexp(logits, 0) - (of_text * logits).sum(0))
    return (image_to_text + text_to_image) / 2


def reference_of_both(kind, image, text, scales, biases, ids):
    parts = [(x[:, :1], x[:, 1:]) for x in (text, ids)]
    values = [reference(kind, image, *given) for given in zip(*parts, scales, biases, strict=True)]
    return values[0] + 2 * values[1]


@functools.cache
def both(kind, num_devices=1, exchange="all_gather", block_size=256):
    """A jitted global loss plus twice the multi-label loss, with gradients."""
    pairing = losses.Pairing(kind, parallel.BATCH_AXES, exchange, block_size)

    def on_device(image, text, scales, biases, ids):
        parts = [[x[:, :1], x[:, 1:]] for x in (text, ids)]
        found = losses.contrastive_losses(image, parts[0], scales, biases, pairing, parts[1])
        return found[0][0] + 2 * found[1][0], [metrics for _, metrics in found]

    by_row, alike = PartitionSpec(parallel.BATCH_AXES), PartitionSpec()
    total = jax.shard_map(
        on_device,
        mesh=mesh_of(num_devices),
        in_specs=(by_row, by_row, alike, alike, by_row),
        out_specs=alike,
    )
    return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2, 3), has_aux=True))


def identities(batch=B):
    """Captions and prompts that repeat among images, within one, and from one kind to another."""
    ids = np.random.default_rng(3).integers(0, 12, size=(batch, 1 + K)).astype(np.int32)
    ids[4, 1:] = ids[4, 0]  # a caption that stands in for its prompts
    ids[5, 0] = 2**31 - 1
    return ids


def arguments():
    return *embeddings(), (SCALE, SCALE / 2), (BIAS, BIAS + 1)


@functools.cache
def finite_differences(kind):
    """The reference's value and gradient in float64."""
    exact = jax.tree.map(lambda x: np.array(x, np.float64), arguments())

    def value_of(*arguments):
        return reference_of_both(kind, *arguments, identities())

    return value_of(*exact), jax.tree.leaves(central_differences(value_of, exact, step=1e-5))


@pytest.mark.parametrize("kind", losses.KINDS)
@pytest.mark.parametrize(
    "way", [(1,), (1, "all_gather", 5), (8,), (4, "all_gather", 8), (4, "ring", 2)], ids=str
)
def test_value_and_gradients_equal_explicit_targets(kind, way):
    (value, _), gradients = both(kind, *way)(*arguments(), identities())
    expected, expected_gradients = finite_differences(kind)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    positives = [positive_of(ids) for ids in (identities()[:, :1], identities()[:, 1:])]
    magnitudes = magnitudes_of_both(kind, arguments(), positives)
    assert_gradients(kind, gradients, expected_gradients, magnitudes)


@pytest.mark.parametrize("kind", losses.KINDS)
def test_different_texts_give_the_loss_without_ids(kind):
    image, text, (scale, _), (bias, _) = arguments()
    ids = jnp.arange(B * K).reshape(B, K)

    def run(ids):
        found = losses.contrastive_losses(image, [text[:, 1:]], [scale], [bias], ids=ids, **of_kind)
        return found[0]

    of_kind = {"pairing": losses.Pairing(kind)}
    (value, metrics), (expected, expected_metrics) = run([ids]), run(None)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert metrics == expected_metrics
    # Ids of the same caption K times, as where there are no nouns, are those of its image alone.
    value, metrics = run([jnp.broadcast_to(jnp.arange(B)[:, None], (B, K))])
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_the_best_text_may_be_another_images():
    image, ids = jnp.eye(4), jnp.array([[7], [7], [8], [9]])
    swapped = image[jnp.array([1, 0, 3, 2])][:, None]

    def accuracies(ids):
        ((_, metrics),) = losses.contrastive_losses(image, [swapped], [jnp.zeros(())], ids=ids)
        return metrics["image_to_text_accuracy"], metrics["text_to_image_accuracy"]

    assert accuracies(None) == (0, 0)
    assert accuracies([ids]) == (0.5, 0.5)


def test_a_third_loss_with_ids_is_refused():
    image, text = embeddings()
    with pytest.raises(ValueError, match="ids of 3 losses found, expected at most 2"):
        losses.contrastive_losses(image, [text] * 3, [SCALE] * 3, ids=[jnp.zeros((B, 4), int)] * 3)


def test_no_pair_of_texts_is_compared_by_ids_at_once():
    """Only images with texts are, as without ids."""
    block, batch = 7, 56
    given = *embeddings(batch), *arguments()[2:], identities(batch)
    program = both("softmax", 8, "all_gather", block).lower(*given).compile().as_text()
    shapes = {tuple(map(int, s.split(","))) for s in re.findall(r"\w+\[([\d,]+)\]", program)}
    sizes = {int(np.prod(shape)) for shape in shapes}
    own = batch // 8
    assert own * (1 + K) * block in sizes
    assert own * (1 + K) * block * (1 + K) not in sizes
