import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from groupvit_jax import losses, parallel
from tests.losses.differences import central_differences
from tests.losses.test_contrastive import mesh_of

B, L, G = 8, 6, 4


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def reference(maps, superpixels):
    """The loss patch by patch."""
    total = 0.0
    for image, patch in np.ndindex(B, L):
        own = superpixels[image] == superpixels[image, patch]
        p, q = softmax(maps[image][own].mean(axis=0)), softmax(maps[image, patch])
        total += (p * np.log(p / q)).sum() / 2 + (q * np.log(q / p)).sum() / 2
    return total / (B * L * G)


def arguments():
    rng = np.random.default_rng(0)
    return rng.dirichlet(np.full(G, 0.3), size=(B, L)), rng.integers(0, 3, (B, L))


@pytest.mark.parametrize("num_devices", [1, 8])
def test_value_and_gradient_are_those_of_every_patch(num_devices):
    maps, superpixels = arguments()
    by_row = NamedSharding(mesh_of(num_devices), PartitionSpec(parallel.BATCH_AXES))
    given = [jax.device_put(x, by_row) for x in (jnp.float32(maps), jnp.asarray(superpixels))]
    compute = jax.jit(jax.value_and_grad(losses.superpixel_loss, has_aux=True))
    (value, metrics), gradient = compute(*given)
    np.testing.assert_allclose(value, reference(maps, superpixels), rtol=1e-5)
    [wanted] = central_differences(lambda maps: reference(maps, superpixels), [maps])
    np.testing.assert_allclose(gradient, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert 0 < metrics["agreement"] < 1


def test_patches_that_agree_cost_nothing():
    maps = jax.nn.one_hot(jnp.array([[0, 1, 1, 0]]), 2)
    value, metrics = losses.superpixel_loss(maps, jnp.array([[7, 3, 3, 7]]))
    assert value == 0
    assert metrics["agreement"] == 1
    value, metrics = losses.superpixel_loss(maps, jnp.array([[7, 7, 3, 3]]))
    assert value > 0
