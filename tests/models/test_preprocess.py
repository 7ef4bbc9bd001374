from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from groupvit_jax.models.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    normalize,
    random_crops,
    random_erasing,
)
from tests.devices import first_devices

KEY = jax.random.key(3)


@partial(jax.jit, static_argnums=2)
def erase(key, images, probability):
    return random_erasing(jax.random.split(key, len(images)), images, probability)


def test_normalize():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    expected = (images / 255.0 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    result = normalize(jnp.asarray(images))
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, atol=1e-6)


@pytest.fixture(scope="module")
def erased() -> np.ndarray:
    """1,500 images of zeros: what isn't zero afterwards is noise."""
    return np.asarray(erase(KEY, jnp.zeros((1500, 64, 64, 3)), 0.25))


def test_a_quarter_of_the_images_loses_one_box(erased):
    mask = (erased != 0).all(axis=-1)
    np.testing.assert_array_equal(mask, (erased != 0).any(axis=-1))
    hit = mask.any(axis=(1, 2))
    assert hit.mean() == pytest.approx(0.25, abs=0.03)
    for box in mask[hit]:
        rows, columns = np.flatnonzero(box.any(1)), np.flatnonzero(box.any(0))
        assert box.sum() == len(rows) * len(columns)
        assert (np.diff(rows) == 1).all()
        assert (np.diff(columns) == 1).all()
        assert max(len(rows), len(columns)) < 64


def test_boxes_are_distributed_as_timms(erased):
    """Against deciles of 10,000 boxes by timm 1.0.31 in images of 64 x 64 pixels."""
    mask = (erased != 0).any(axis=-1)
    mask = mask[mask.any(axis=(1, 2))]
    height, width = mask.any(2).sum(1), mask.any(1).sum(1)
    deciles = np.arange(1, 10) / 10
    area = [0.051, 0.082, 0.113, 0.144, 0.172, 0.203, 0.234, 0.264, 0.298]
    np.testing.assert_allclose(np.quantile(height * width / 64**2, deciles), area, atol=0.02)
    aspect = [-0.956, -0.714, -0.47, -0.216, 0.0, 0.251, 0.495, 0.731, 0.968]
    np.testing.assert_allclose(np.quantile(np.log(height / width), deciles), aspect, atol=0.15)
    for start, size in ((mask.any(2).argmax(1), height), (mask.any(1).argmax(1), width)):
        assert ((start + 0.5) / (65 - size)).mean() == pytest.approx(0.5, abs=0.04)


def test_the_noise_is_standard_normal(erased):
    noise = erased[erased != 0]
    assert noise.mean() == pytest.approx(0.0, abs=0.01)
    assert noise.std() == pytest.approx(1.0, abs=0.01)


def test_other_pixels_stay():
    images = jax.random.normal(jax.random.key(1), (64, 16, 16, 3))
    result = erase(KEY, images, 1.0)
    changed = np.asarray((result != images).any(axis=-1))
    assert changed.any(axis=(1, 2)).all()
    assert 0.02 < changed.mean() < 1 / 3
    np.testing.assert_array_equal(result[~changed], images[~changed])
    np.testing.assert_array_equal(erase(KEY, images, 0.0), images)


def test_keys_decide():
    images = jnp.zeros((32, 16, 16, 3))
    a, b, c = (np.asarray(erase(jax.random.key(k), images, 0.5)) for k in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_sharding_does_not_change_the_result():
    mesh = Mesh(np.array(first_devices(8)), ("data",))
    images = jax.random.normal(KEY, (32, 16, 16, 3))
    sharded = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
    result = erase(KEY, sharded, 0.5)
    assert len(result.sharding.device_set) == 8
    np.testing.assert_array_equal(result, erase(KEY, images, 0.5))


def test_random_crops_are_parts_of_their_images():
    side = 16
    ramp = jnp.broadcast_to(jnp.arange(side, dtype=jnp.float32)[:, None, None], (side, side, 3))
    images = jnp.stack([ramp, ramp.transpose(1, 0, 2)])
    keys = jax.random.split(jax.random.key(0), 2)
    crops = random_crops(keys, images, (0.25, 0.25))
    assert crops.shape == images.shape
    for crop, axis in zip(np.asarray(crops), (0, 1), strict=True):
        values = crop.take(side // 2, axis=1 - axis)[:, 0]
        # Half a side, so the ramp rises half as fast, within the image.
        np.testing.assert_allclose(np.diff(values)[2:-2], 0.5, atol=1e-4)
        assert values.min() >= 0
        assert values.max() <= side - 1
    assert not np.allclose(crops[0], crops[1].transpose(1, 0, 2))
    alone = random_crops(keys[1:], images[1:], (0.25, 0.25))
    np.testing.assert_array_equal(alone[0], crops[1])
