import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from groupvit_jax import losses, parallel
from tests.bounds import assert_within_roundings
from tests.devices import first_devices
from tests.losses.differences import central_differences

B, K, D = 16, 3, 8
SCALE = jnp.log(1 / 0.07)
BIAS = jnp.float32(-3)


# What a gradient's term goes through. An exponential turns absolute errors of its logit and of the
# logarithm it is divided by into relative ones; both are below 16, so each of their roundings adds
# up to 8. The D + 2 roundings of either are independent: 8 sqrt(D + 2) = 25 (Higham and Mary, 2019,
# SIAM J. Sci. Comput. 41). Normalising, summing and projecting are fewer than 14 at full size.
ROUNDINGS = 25 + 25 + 14


def logsumexp(x, axis, keepdims=False):
    largest = x.max(axis, keepdims=True)
    result = largest + np.log(np.exp(x - largest).sum(axis, keepdims=True))
    return result if keepdims else result.squeeze(axis)


def reference(kind, image, text, logit_scale, bias):
    """The loss of images [B, D] and K texts each, [B, K, D], from the whole matrix of logits."""
    image, text = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
    B, K, D = text.shape
    logits = image @ text.reshape(B * K, D).T * min(np.exp(logit_scale), 100)
    own = np.repeat(np.eye(B), K, axis=1)
    if kind == "sigmoid":
        return np.log1p(np.exp(-(2 * own - 1) * (logits + bias))).sum() / (B * K)
    image_to_text = np.mean(logsumexp(logits, 1) - (own * logits).sum(1) / K)
    text_to_image = np.mean(logsumexp(logits, 0) - (own * logits).sum(0))
    return (image_to_text + text_to_image) / 2


def reference_of_both(kind, image, text, scales, biases):
    parts = (text[:, :1], text[:, 1:])
    values = [reference(kind, image, *given) for given in zip(parts, scales, biases, strict=True)]
    return values[0] + 2 * values[1]


def magnitudes(kind, image, text, logit_scale, bias, positive=None):
    """The gradients' terms by image, text, scale and bias, all added up without their signs."""
    B, K, D = text.shape
    positive = np.repeat(np.eye(B), K, axis=1) if positive is None else positive
    norms = [np.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text.reshape(B * K, D))]
    image, text = image / norms[0], text.reshape(B * K, D) / norms[1]
    scale = min(np.exp(logit_scale), 100)
    logits = scale * image @ text.T
    if kind == "sigmoid":
        weights = (1 / (1 + np.exp(-logits - bias)) + positive) / (B * K)
    else:
        by_row, by_column = (np.exp(logits - logsumexp(logits, a, keepdims=True)) for a in (1, 0))
        weights = (by_row + positive / positive.sum(1, keepdims=True)) / (2 * B)
        weights += (by_column + positive / positive.sum(0)) / (2 * B * K)
    image, text = np.abs(image), scale * np.abs(text)
    by_image, by_text = weights @ text, scale * weights.T @ image
    by_scale = (weights * (image @ text.T)).sum()
    # Through x / ||x||, whose derivative is (1 - x x^T / ||x||^2) / ||x||.
    by_image = (by_image + image * (image * by_image).sum(1, keepdims=True)) / norms[0]
    text /= scale
    by_text = (by_text + text * (text * by_text).sum(1, keepdims=True)) / norms[1]
    return by_image, by_text.reshape(B, K, D), by_scale, weights.sum()


def magnitudes_of_both(kind, arguments, positives=(None, None)):
    """Of the loss that `reference_of_both` gives, in the order of `jax.tree.leaves`."""
    image, text, scales, biases = jax.tree.map(lambda x: np.array(x, np.float64), arguments)
    parts = (text[:, :1], text[:, 1:])
    one, two = (
        magnitudes(kind, image, *given)
        for given in zip(parts, scales, biases, positives, strict=True)
    )
    text = np.concatenate([one[1], 2 * two[1]], axis=1)
    return [one[0] + 2 * two[0], text, one[2], 2 * two[2], one[3], 2 * two[3]]


def mesh_of(num_devices):
    sizes = {"data": min(num_devices, 2), "fsdp": -1, "tensor": 1}
    return parallel.make_mesh(sizes, first_devices(num_devices))


@functools.cache
def both(kind, num_devices=1, exchange="all_gather", block_size=256):
    """A jitted global loss plus twice the multi-label loss, with gradients."""
    pairing = losses.Pairing(kind, parallel.BATCH_AXES, exchange, block_size)

    def on_device(image, text, scales, biases):
        texts = [text[:, :1], text[:, 1:]]
        found = losses.contrastive_losses(image, texts, scales, biases, pairing)
        return found[0][0] + 2 * found[1][0], [metrics for _, metrics in found]

    by_row, alike = PartitionSpec(parallel.BATCH_AXES), PartitionSpec()
    total = jax.shard_map(
        on_device,
        mesh=mesh_of(num_devices),
        in_specs=(by_row, by_row, alike, alike),
        out_specs=alike,
    )
    return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2, 3), has_aux=True))


def embeddings(batch=B):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(batch, D)).astype(np.float32)
    # Captions resemble their images, so that the losses and accuracies are not those of chance.
    text = image[:, None] + rng.normal(size=(batch, 1 + K, D)).astype(np.float32)
    return jnp.asarray(image), jnp.asarray(text)


def arguments(scale=SCALE):
    return *embeddings(), (scale, scale / 2), (BIAS, BIAS + 1)


@functools.cache
def finite_differences(kind):
    """The reference's value and gradient in float64."""
    exact = jax.tree.map(lambda x: np.array(x, np.float64), arguments())
    value_of = functools.partial(reference_of_both, kind)
    return value_of(*exact), central_differences(value_of, exact, step=1e-5)


def assert_gradients(kind, gradients, expected, magnitudes):
    """Compares the leaves; sees a factor of 1.00001 in images' and texts'."""
    gradients, expected = jax.tree.leaves(gradients), jax.tree.leaves(expected)
    if kind == "softmax":  # no bias changes its loss
        assert not any(gradients[-2:])
        gradients, expected, magnitudes = (x[:-2] for x in (gradients, expected, magnitudes))
    for found, wanted, magnitude in zip(gradients, expected, magnitudes, strict=True):
        assert np.abs(wanted).max() > 1e-3
        assert_within_roundings(found, wanted, magnitude, ROUNDINGS)


WAYS = [
    pytest.param((1,), id="one device"),
    pytest.param((1, "all_gather", 5), id="one device, blocks"),
    pytest.param((8,), id="all_gather"),
    pytest.param((8, "all_gather", 4), id="all_gather, blocks"),
    pytest.param((8, "ring"), id="ring"),
    pytest.param((4, "ring", 2), id="ring, blocks"),
]


@pytest.mark.parametrize("kind", losses.KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_value_and_gradients_equal_the_whole_matrix(kind, way):
    (value, _), gradients = both(kind, *way)(*arguments())
    expected, expected_gradients = finite_differences(kind)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert_gradients(kind, gradients, expected_gradients, magnitudes_of_both(kind, arguments()))


@pytest.mark.parametrize("kind", losses.KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_metrics_do_not_depend_on_the_way(kind, way):
    (_, metrics), _ = both(kind, *way)(*arguments())
    (_, expected), _ = both(kind)(*arguments())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), metrics, expected)
    assert 1 / B < expected[1]["text_to_image_accuracy"] < 1


def test_scale_is_clipped():
    (value, metrics), _ = both("softmax")(*arguments(jnp.float32(5.0)))
    given = jax.tree.map(lambda x: np.float64(x), arguments(jnp.float32(5.0)))
    np.testing.assert_allclose(value, reference_of_both("softmax", *given), rtol=1e-6)
    np.testing.assert_allclose(metrics[0]["temperature"], 0.01)
    assert losses.clipped_scale(jnp.float32(9)) == 100


@pytest.mark.parametrize("exchange", losses.EXCHANGES)
@pytest.mark.parametrize("num_devices", [2, 4, 8])
def test_logits_of_a_device_do_not_grow_with_the_devices(num_devices, exchange):
    """With 16 examples a device; beside logits only everyone's embeddings grow."""
    per_device, block = 16, 8
    image, text = embeddings(num_devices * per_device)
    compiled = both("softmax", num_devices, exchange, block).lower(image, text, *arguments()[2:])
    program = compiled.compile().as_text()
    shapes = {tuple(map(int, s.split(","))) for s in re.findall(r"f32\[([\d,]+)\]", program)}
    logits = [s for s in shapes if sorted(s) == sorted((per_device, 1 + K, block))]
    assert logits
    everyones_text = num_devices * per_device * (1 + K) * D
    own_logits = per_device * (1 + K) * block
    assert max(map(np.prod, shapes)) <= max(everyones_text, own_logits)
    whole_rows = per_device * (1 + K) * per_device * num_devices
    assert whole_rows not in {int(np.prod(s)) for s in shapes} - {everyones_text}


def test_embeddings_travel_once():
    """Images, texts, positions forward; the softmax sums and their gradients backward."""
    program = both("softmax", 8).lower(*arguments()).compile().as_text()
    gathered = re.findall(r"= \w+\[([\d,]+)\]\S* all-gather\(", program)
    sizes = [np.prod([int(n) for n in shape.split(",")]) for shape in gathered]
    assert sizes.count(B * D) == 1
    assert sizes.count(B * (1 + K) * D) == 1
    assert max(sizes) == B * (1 + K) * D
    ring = both("softmax", 8, "ring").lower(*arguments()).compile().as_text()
    assert "all-gather" not in ring
    assert "collective-permute" in ring


def loss_of(image, texts, scale=SCALE):
    ((value, metrics),) = losses.contrastive_losses(image, [texts], [scale])
    return value, metrics


@pytest.mark.parametrize("first", [0, 1], ids=["global", "multi"])
def test_order_of_the_batch_does_not_matter(first):
    image, text = embeddings()
    text = text[:, :1] if first == 0 else text[:, 1:]
    order = np.random.default_rng(2).permutation(B)
    both_of = jax.jit(jax.value_and_grad(lambda *a: loss_of(*a)[0]))
    shuffled, shuffled_gradient = both_of(image[order], text[order])
    value, gradient = both_of(image, text)
    np.testing.assert_allclose(shuffled_gradient, gradient[order], atol=1e-6)
    np.testing.assert_allclose(shuffled, value, rtol=1e-6)
    # The pairing does matter.
    assert abs(both_of(image[order], text)[0] - value) > 0.1


def test_metrics_count_matches():
    image = jnp.eye(4)
    prompts = jnp.stack([image, image], axis=1)
    # Image 0 still likes its first prompt best; both its prompts are nearer to image 1.
    prompts = prompts.at[0].set(image[1] + jnp.asarray([[0.2], [0.1]]) * image[0])
    prompts = prompts.at[2].set(-image[2])
    _, metrics = loss_of(image, prompts, jnp.float32(0))
    assert metrics["text_to_image_accuracy"] == 4 / 8
    assert metrics["image_to_text_accuracy"] == 3 / 4
    assert metrics["temperature"] == 1


def test_uniform_guess():
    same = jnp.ones((B, D))
    loss, _ = loss_of(same, same[:, None], jnp.float32(0))
    np.testing.assert_allclose(loss, np.log(B), rtol=1e-6)


def test_zero_embedding_keeps_loss_and_gradient_finite():
    image, text = embeddings()
    (value, _), gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(
        image.at[0].set(0), text
    )
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_half_precision_embeddings_are_compared_in_float32():
    image, text = (x.astype(jnp.bfloat16) for x in embeddings())
    value, _ = loss_of(image, text)
    assert value.dtype == jnp.float32
    given = (np.asarray(x, np.float64) for x in (image, text, SCALE, 0))
    np.testing.assert_allclose(value, reference("softmax", *given), rtol=1e-6)
