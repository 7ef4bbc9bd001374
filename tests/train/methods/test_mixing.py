import jax
import jax.numpy as jnp
import numpy as np

from groupvit_jax import parallel
from groupvit_jax.train.methods import mixing
from tests.devices import first_devices
from tests.train.test_step import MESHES

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
