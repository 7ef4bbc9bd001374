import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from groupvit_jax import losses, parallel
from tests.losses.differences import central_differences
from tests.losses.test_contrastive import mesh_of

B, N, D, M = 16, 9, 6, 4


def reference(images, logit_scale, bank, nouns):
    """The loss image by image, with a target for each."""
    total, number = 0.0, 0
    scale = min(np.exp(logit_scale), 100)
    for image, own in zip(images, nouns, strict=True):
        own = own[own >= 0]
        if not len(own):
            continue
        target = np.zeros(N)
        target[own] = 1 / len(own)
        e = np.exp(scale * bank @ image / np.linalg.norm(image))
        total -= target @ np.log(e / e.sum())
        number += 1
    return total / number


def arguments():
    rng = np.random.default_rng(0)
    bank = rng.normal(size=(N, D))
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    nouns = np.full((B, M), -1)
    for i, row in enumerate(nouns):
        row[: i % (M + 1)] = rng.permutation(N)[: i % (M + 1)]
    return rng.normal(size=(B, D)), np.log(1 / 0.2), bank, nouns


@pytest.mark.parametrize("num_devices", [1, 8])
def test_value_and_gradients_are_those_of_every_image(num_devices):
    images, scale, bank, nouns = arguments()
    mesh = mesh_of(num_devices)
    by_row, alike = (NamedSharding(mesh, PartitionSpec(*s)) for s in ([parallel.BATCH_AXES], []))
    given = jax.device_put(jnp.float32(images), by_row), jax.device_put(jnp.float32(scale), alike)
    placed_bank = jax.device_put(jnp.float32(bank), alike)
    placed_nouns = jax.device_put(jnp.asarray(nouns), by_row)

    def value_of(images, scale, bank):
        return losses.noun_bank_loss(images, bank, placed_nouns, scale)

    compute = jax.jit(jax.value_and_grad(value_of, argnums=(0, 1, 2), has_aux=True))
    (value, metrics), (*gradients, of_bank) = compute(*given, placed_bank)
    np.testing.assert_allclose(value, reference(images, scale, bank, nouns), rtol=1e-5)
    assert not np.any(of_bank)
    expected = central_differences(
        lambda images, scale: reference(images, scale, bank, nouns), [images, scale]
    )
    for found, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert not np.any(gradients[0][0])  # without a noun
    assert metrics["images_with_nouns"] == (nouns >= 0).any(axis=1).mean()
    assert 0 < metrics["accuracy"] < 1


def test_images_at_their_nouns_cost_nothing_and_no_nouns_no_loss():
    bank, scale = jnp.eye(3), jnp.log(100.0)
    value, metrics = losses.noun_bank_loss(bank, bank, jnp.arange(3)[:, None], scale)
    assert value < 1e-6
    assert metrics["accuracy"] == 1
    value, metrics = losses.noun_bank_loss(bank, bank, jnp.full((3, 2), -1), scale)
    assert value == metrics["accuracy"] == metrics["images_with_nouns"] == 0
