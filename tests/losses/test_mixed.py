import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from groupvit_jax import losses, parallel
from tests.losses.differences import central_differences
from tests.losses.test_contrastive import mesh_of

B, h, w, G, D, N = 8, 3, 4, 5, 6, 2


def reference(maps, segments, texts, logit_scale, owner):
    """The loss patch by patch."""
    segments, texts = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (segments, texts))
    scale, total = min(np.exp(logit_scale), 100), 0.0
    for image, row, column in np.ndindex(B, h, w):
        chance = 0.0
        for group in range(G):
            to_texts = np.exp(scale * texts[image] @ segments[image, group])
            share = to_texts[owner[image, row, column]] / to_texts.sum()
            chance += maps[image, row, column, group] * share
        total -= np.log(chance)
    return total / (B * h * w)


def arguments():
    rng = np.random.default_rng(0)
    maps = rng.dirichlet(np.full(G, 0.3), size=(B, h, w))
    segments, texts = rng.normal(size=(B, G, D)), rng.normal(size=(B, N, D))
    return maps, segments, texts, np.log(1 / 0.2), rng.integers(0, N, (B, h, w))


def gradients_of_reference():
    """Of segments, texts and the scale."""
    maps, *flat, owner = arguments()
    return central_differences(lambda *flat: reference(maps, *flat, owner), flat)


@pytest.mark.parametrize("num_devices", [1, 8])
def test_value_and_gradients_are_those_of_every_patch(num_devices):
    mesh = mesh_of(num_devices)
    given = [
        jnp.asarray(x, None if x.dtype == int else jnp.float32)
        for x in map(np.asarray, arguments())
    ]
    by_row = NamedSharding(mesh, PartitionSpec(parallel.BATCH_AXES))
    given = [jax.device_put(x, by_row) if x.ndim else x for x in given]
    maps, segments, texts, scale, owner = given

    def value_of(segments, texts, scale):
        return losses.mixed_patch_loss(maps, segments, texts, owner, scale)

    compute = jax.jit(jax.value_and_grad(value_of, argnums=(0, 1, 2), has_aux=True))
    (value, metrics), gradients = compute(segments, texts, scale)
    expected = reference(*arguments())
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for found, wanted in zip(gradients, gradients_of_reference(), strict=True):
        size = np.abs(wanted).max()
        assert size > 1e-3
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * size)
    assert 0 < metrics["accuracy"] < 1


def test_a_segmentation_into_the_owners_costs_nothing():
    texts = jnp.eye(D)[jnp.array([[0, 1], [2, 3]])]
    segments = texts
    owner = jnp.array([[[0, 1, 1]], [[1, 1, 0]]])
    maps, scale = jax.nn.one_hot(owner, 2), jnp.log(100.0)
    value, metrics = losses.mixed_patch_loss(maps, segments, texts, owner, scale)
    assert value < 1e-6
    assert metrics["accuracy"] == 1
    swapped, metrics = losses.mixed_patch_loss(maps[..., ::-1], segments, texts, owner, scale)
    np.testing.assert_allclose(swapped, 100, rtol=1e-5)
    assert metrics["accuracy"] == 0
