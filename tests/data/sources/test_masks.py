import cv2
import numpy as np
import PIL.Image
import pytest

from groupvit_jax.data.images.decode import decode
from groupvit_jax.data.sources.masks import (
    IdTable,
    MaskedSource,
    TfdsMasks,
    decode_photo,
    pair,
    read_mask,
)
from groupvit_jax.scenes.dataset import SceneConfig, build
from tests.data.image_files import encode

MARKED = np.zeros((20, 30), np.uint8)  # as stored: the mask marks the photo's bright corner
MARKED[:8, :16] = 1


def photo_with_orientation(orientation, pixels=MARKED):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    grey = np.repeat(pixels[..., None] * 255, 3, axis=2)
    return encode(grey, "JPEG", exif=exif, quality=95)


def png(values, mode="L"):
    image = PIL.Image.fromarray(np.asarray(values))
    assert image.mode == mode
    return encode(image, "PNG")


def bright(image):
    return (image.mean(-1) > 128).astype(np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_mask_drawn_on_the_stored_pixels_is_turned_with_the_photo(orientation):
    data = photo_with_orientation(orientation)
    image, mask = pair(decode_photo(data), MARKED.astype(np.int32), None)
    np.testing.assert_array_equal(image, decode(data))
    np.testing.assert_array_equal(mask, bright(image))


@pytest.mark.parametrize("orientation", range(5, 9))
def test_mask_drawn_on_the_upright_photo_stays(orientation):
    read = decode_photo(photo_with_orientation(orientation))
    upright = bright(read.image)
    assert upright.shape == MARKED.shape[::-1]
    _, mask = pair(read, upright.astype(np.int32), None)
    np.testing.assert_array_equal(mask, upright)


def test_a_square_mask_is_taken_as_drawn_on_the_stored_pixels():
    read = decode_photo(photo_with_orientation(6, MARKED[:, :20]))
    _, mask = pair(read, MARKED[:, :20].astype(np.int32), None)
    np.testing.assert_array_equal(mask, bright(read.image))


def test_transparent_photo_lies_on_white():
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[0] = (10, 20, 30, 255)
    image, _ = pair(decode_photo(encode(pixels, "PNG")), np.zeros((2, 3), np.int32), None)
    np.testing.assert_array_equal(image[0], [[10, 20, 30]] * 3)
    np.testing.assert_array_equal(image[1], 255)


@pytest.mark.parametrize(
    ("values", "mode", "expected"),
    [
        (np.array([[0, 7, 255]], np.uint8), "L", [[0, 7, 255]]),
        (np.array([[0, 459, 65535]], np.uint16), "I;16", [[0, 459, 65535]]),
        (np.array([[True, False, True]]), "1", [[1, 0, 1]]),
    ],
)
def test_grey_masks_of_any_depth_are_read(values, mode, expected):
    np.testing.assert_array_equal(read_mask(png(values, mode), (1, 3)), expected)


def test_palette_does_not_change_a_masks_values():
    image = PIL.Image.new("P", (3, 1))
    image.putpalette([9, 9, 9] * 256)
    image.putdata([0, 5, 255])
    np.testing.assert_array_equal(read_mask(encode(image, "PNG"), (1, 3)), [[0, 5, 255]])


def test_size_that_a_mask_declares_is_not_trusted():
    data = bytearray(png(np.zeros((2, 3), np.uint8)))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    with pytest.raises(ValueError, match=r"mask is no readable PNG|60000 x 60000 pixels"):
        read_mask(bytes(data), (2, 3))


def test_ids_become_classes_and_others_are_errors():
    table = IdTable({0: 255, 7: 0, 459: 1})
    np.testing.assert_array_equal(table(np.array([[0, 7, 459]])), [[255, 0, 1]])
    for unknown in (-1, 8, 70_000):
        with pytest.raises(ValueError, match=rf"values \[{unknown}\] found in the mask, expected"):
            table(np.array([[7, unknown]]))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    build(str(folder), SceneConfig(name="few", size=32, num_train=1, num_eval=3))
    return str(folder / "scenes/few/2.0.0")


def test_tfds_masks_take_other_features_and_ids(scenes):
    plain = TfdsMasks("", "test", scenes)
    assert isinstance(plain, MaskedSource)
    assert len(plain) == 3
    assert plain.locate(2).endswith("image 2")
    shifted = TfdsMasks("", "test", scenes, ids={i: i + 1 for i in range(255)})
    np.testing.assert_array_equal(shifted[1].mask, plain[1].mask + 1)
    swapped = TfdsMasks("", "test", scenes, image="mask", mask="mask")
    np.testing.assert_array_equal(swapped[0].image, cv2.merge([plain[0].mask] * 3))


def test_tfds_masks_name_what_is_wrong(scenes):
    with pytest.raises(ValueError, match=r"features .* found, expected image and annotation"):
        TfdsMasks("", "test", scenes, mask="annotation")
    with pytest.raises(ValueError, match=r"image 1: mask with the channels RGB found"):
        TfdsMasks("", "test", scenes, mask="image")[1]
    with pytest.raises(ValueError, match=r"image 1: values .* found in the mask"):
        TfdsMasks("", "test", scenes, ids={200: 0})[1]
