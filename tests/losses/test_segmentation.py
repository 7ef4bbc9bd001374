import functools

import jax
import numpy as np
import pytest

from groupvit_jax import losses, parallel
from tests.losses.test_contrastive import mesh_of


def masked_arguments():
    """Soft assignments [B, H, W, G], logits [B, G, N] and masks, some pixels without a class."""
    rng = np.random.default_rng(1)
    maps = rng.dirichlet(np.ones(4), size=(8, 3, 5)).astype(np.float32)
    maps[0, 0, 0] = (0, 1, 0, 0)
    logits = rng.normal(0, 2, size=(8, 4, 6)).astype(np.float32)
    mask = rng.integers(0, 6, size=(8, 3, 5)).astype(np.uint8)
    mask[1, 1], mask[2] = 255, 255
    return maps, logits, mask


def reference_of_masks(maps, logits, mask):
    """Minus the logarithm of the mixture, pixel by pixel."""
    classes = np.exp(logits - logits.max(-1, keepdims=True))
    classes /= classes.sum(-1, keepdims=True)
    found = [
        -np.log(sum(share * of[mask[b, y, x]] for share, of in zip(maps[b, y, x], classes[b])))  # noqa: B905
        for b, y, x in np.argwhere(mask != 255)
    ]
    return np.mean(found)


@functools.cache
def masked(num_devices):
    """The jitted loss of a batch that is divided over devices, with gradients."""
    by_row = parallel.batch_sharding(mesh_of(num_devices))
    gradient = jax.value_and_grad(losses.segmentation_loss, argnums=(0, 1), has_aux=True)
    return jax.jit(gradient, in_shardings=(by_row, by_row, by_row))


@pytest.mark.parametrize("num_devices", [1, 8])
def test_segmentation_loss_and_gradients_are_the_mixtures(num_devices):
    maps, logits, mask = masked_arguments()
    (value, labelled), gradients = masked(num_devices)(maps, logits, mask)
    exact = maps.astype(np.float64), logits.astype(np.float64)
    np.testing.assert_allclose(value, reference_of_masks(*exact, mask), rtol=1e-6)
    np.testing.assert_allclose(labelled, (mask != 255).mean(), rtol=1e-6)
    rng = np.random.default_rng(2)
    for which, gradient in enumerate(gradients):
        for place in rng.permutation(list(np.ndindex(exact[which].shape)))[:60].tolist():
            ends = []
            for step in (1e-6, -1e-6):
                moved = [x.copy() for x in exact]
                moved[which][tuple(place)] += step
                ends.append(reference_of_masks(*moved, mask))
            # A group without a share has no gradient here: the softmax above it has none either.
            has_share = which == 1 or exact[0][tuple(place)] > 0
            wanted = (ends[0] - ends[1]) / 2e-6 if has_share else 0.0
            np.testing.assert_allclose(gradient[tuple(place)], wanted, rtol=1e-4, atol=1e-6)


def test_segmentation_loss_stays_finite_where_a_class_is_hopeless():
    maps = np.array([[[[1.0, 0.0], [1e-30, 1.0]]]], np.float32)
    logits = np.array([[[0.0, 300.0], [400.0, 0.0]]], np.float32)
    mask = np.array([[[0, 1]]], np.uint8)
    (value, _), gradients = masked(1)(maps, logits, mask)
    # -log(1e-30 * 1) = 69 is likelier than -log(e^-400)
    np.testing.assert_allclose(value, (300 - np.log(1e-30)) / 2, rtol=1e-5)
    assert all(np.isfinite(x).all() for x in gradients)


def test_segmentation_loss_of_nothing_is_zero():
    maps, logits, mask = masked_arguments()
    (value, labelled), gradients = masked(1)(maps, logits, np.full_like(mask, 255))
    assert (value, labelled) == (0, 0)
    assert not any(x.any() for x in gradients)
