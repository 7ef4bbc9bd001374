import jax
import jax.numpy as jnp
import numpy as np
import pytest

from groupvit_jax import parallel
from groupvit_jax.models.two_tower import build_model
from groupvit_jax.train.methods import mixing
from tests.devices import first_devices
from tests.train.test_step import MESHES, Run, host_batch, tiny_config

PATCH, CELL = 4, 2


def images(batch=16, side=20):
    return np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)


def mixed(given, ids=None):
    ids = jnp.arange(len(given)) if ids is None else ids
    return mixing.mix_images(jax.random.key(0), ids, given, PATCH, CELL)


def test_every_patch_is_whole_and_of_its_owner():
    given = images()
    found, owner = mixed(jnp.asarray(given))
    assert owner.shape == (16, 5, 5)
    assert 0.4 < owner.mean() < 0.6
    sources = np.stack([given, np.roll(given, 1, axis=0)])
    for image, row, column in np.ndindex(owner.shape):
        place = (
            image,
            slice(row * PATCH, row * PATCH + PATCH),
            slice(column * PATCH, column * PATCH + PATCH),
        )
        np.testing.assert_array_equal(found[place], sources[int(owner[image, row, column])][place])
    # Squares of two patches are taken whole.
    np.testing.assert_array_equal(owner[:, 0:4:2, 0:4:2], owner[:, 1:5:2, 1:5:2])
    assert len({bytes(np.asarray(o)) for o in owner}) > 10


def test_devices_do_not_change_the_mixing():
    given = images()
    mesh = parallel.make_mesh(MESHES["data"], first_devices(8))
    placed = jax.device_put(given, parallel.batch_sharding(mesh))
    for found, expected in zip(jax.jit(mixed)(placed), mixed(jnp.asarray(given)), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_a_step_learns_from_mixed_images():
    config = tiny_config()
    config.loss.mixed_weight = 1.0
    run = Run(config, MESHES["data"], build_model(config.model))
    history = [run(host_batch(config, step % 2)) for step in range(12)]
    first = history[0]
    np.testing.assert_allclose(
        first["loss"],
        first["global/loss"] + first["multi_label/loss"] + first["mixed/loss"],
        rtol=1e-6,
    )
    assert 0 < first["mixed/accuracy"] < 1
    assert history[-1]["mixed/loss"] < first["mixed/loss"]
