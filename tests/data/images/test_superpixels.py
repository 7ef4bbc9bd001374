import base64
import dataclasses

import cv2
import numpy as np
import pytest

from groupvit_jax.data.images import superpixels
from groupvit_jax.data.images.augment import GEOMETRIES, Operation, apply_operations
from groupvit_jax.data.images.image_header import BrokenImageError
from groupvit_jax.data.images.transforms import Augmentation, viewed_transform

CROPS = Augmentation(min_area=0.3, num_ops=0)


def quarters(height=90, width=120):
    """An image of 3 x 4 areas of one colour each, and the number of each pixel's area."""
    rng = np.random.default_rng(0)
    rows, columns = np.arange(height) * 3 // height, np.arange(width) * 4 // width
    labels = (1 + 4 * rows[:, None] + columns).astype(np.uint8)
    palette = rng.permutation(13 * 19).reshape(13, 19)[:, :3].astype(np.uint8)
    return palette[labels], labels, palette


def test_areas_of_one_colour_are_superpixels():
    image, _, _ = quarters()
    found = superpixels.find(image)
    assert found.shape == (90, 120)
    # The blurred borders of areas may be superpixels of their own.
    inner = found.reshape(3, 30, 4, 30)[:, 4:-4, :, 4:-4].swapaxes(1, 2).reshape(12, -1)
    assert (inner == inner[:, :1]).all()
    assert len(set(inner[:, 0].tolist())) == 12


def test_large_images_are_reduced_and_noise_has_few_superpixels():
    image = np.random.default_rng(0).integers(0, 256, (300, 600, 3), np.uint8)
    found = superpixels.find(image)
    assert found.shape == (128, 256)
    assert 1 <= found.min() <= found.max() <= 200


def test_text_holds_all_numbers():
    labels = np.arange(256, dtype=np.uint8).reshape(8, 32)
    np.testing.assert_array_equal(superpixels.decode(superpixels.encode(labels)), labels)


@pytest.mark.parametrize("text", ["", "%", "aGVsbG8="])
def test_other_texts_are_broken(text):
    with pytest.raises(BrokenImageError, match="superpixels of its JSON are not"):
        superpixels.decode(text)


@pytest.mark.parametrize(("side", "kind"), [(257, ".png"), (8, ".bmp")])
def test_larger_or_other_images_are_refused_before_they_are_decoded(side, kind, monkeypatch):
    content = cv2.imencode(kind, np.ones((side, 4), np.uint8))[1].tobytes()
    monkeypatch.setattr(cv2, "imdecode", None)
    with pytest.raises(
        BrokenImageError, match=rf"{side}x4 pixels, expected png of at most 256x256"
    ):
        superpixels.decode(base64.b64encode(content).decode())


@pytest.mark.parametrize("name", [*GEOMETRIES, "Invert"])
def test_patches_have_the_superpixel_that_they_show(name):
    image, labels, palette = quarters()
    png = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
    rng = np.random.default_rng(1)
    for seed in range(8):
        shown, view = viewed_transform(png, 80, CROPS, np.random.default_rng(seed))
        operations = [Operation(name, s) for s in rng.uniform(-1, 1, 2)]
        view = dataclasses.replace(view, operations=operations)
        found = superpixels.of_patches(labels, view, 10)
        # Between patches' four middle pixels there may be a border: those of one colour tell.
        moved = apply_operations(shown, operations).astype(int)
        corners = [moved[3 + i :: 8, 3 + j :: 8] for i in (0, 2) for j in (0, 2)]
        plain = np.all([corner == corners[0] for corner in corners], axis=(0, 3))
        expected = np.concatenate([[[124, 116, 104]], palette[1:]]) if name != "Invert" else palette
        assert plain.sum() > 30
        np.testing.assert_array_equal(expected[found][plain], corners[0][plain])


def test_an_image_that_is_not_upright_has_no_superpixels():
    image, labels, _ = quarters()
    png = cv2.imencode(".png", image)[1].tobytes()
    _, view = viewed_transform(png, 80, CROPS, np.random.default_rng(0))
    turned = dataclasses.replace(view, header=dataclasses.replace(view.header, orientation=6))
    with pytest.raises(BrokenImageError, match="EXIF orientation 6; expected an upright image"):
        superpixels.of_patches(labels, turned, 10)
