import io

import cv2
import numpy as np
import pytest
import simplejpeg

from groupvit_jax.data.images.decode import BrokenImageError, decode
from groupvit_jax.prepare.images import ImageLimits, TooSmallError, encode_image
from tests.data.image_files import photo
from tests.data.shard_files import encode

# EXIF with orientation 6: turn a quarter clockwise to see it upright.
EXIF_ORIENTATION_6 = (
    b"\xff\xe1\x00\x22Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
)


def test_small_jpeg_keeps_its_bytes():
    data = encode(height=40, width=64)
    sizes = {"width": 64, "height": 40, "original_width": 64, "original_height": 40}
    assert encode_image(data, ImageLimits(64)) == (data, sizes)


@pytest.mark.parametrize("kind", ["large", "png", "webp", "grey", "cmyk", "16 bit"])
def test_other_images_become_small_rgb_jpegs(kind):
    pixels = np.full((90, 60, 3), (200, 100, 50), np.uint8)
    if kind == "large":
        data = simplejpeg.encode_jpeg(pixels, 95)
    elif kind == "grey":
        data = cv2.imencode(".jpg", pixels[..., 1])[1].tobytes()
    elif kind == "cmyk":
        # Inverted, as Adobe's writers have it.
        cmyk = np.concatenate([pixels, np.full((90, 60, 1), 255, np.uint8)], axis=-1)
        data = simplejpeg.encode_jpeg(cmyk, 95, colorspace="CMYK", colorsubsampling="444")
    elif kind == "16 bit":
        data = cv2.imencode(".png", pixels[..., ::-1].astype(np.uint16) * 257)[1].tobytes()
    else:
        data = cv2.imencode(f".{kind}", pixels[..., ::-1])[1].tobytes()
    jpeg, sizes = encode_image(data, ImageLimits(45))
    assert sizes == {"width": 30, "height": 45, "original_width": 60, "original_height": 90}
    assert simplejpeg.decode_jpeg_header(jpeg)[:3] == (45, 30, "YCbCr")
    if kind != "cmyk":  # whose colours are a matter of taste
        expected = 100 if kind == "grey" else pixels[0, 0]
        assert np.abs(decode(jpeg).mean(axis=(0, 1)) - expected).max() < 4


@pytest.mark.parametrize("max_side", [16, 512])
def test_orientation_is_applied(max_side):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, 16:] = 255  # white on the right, so at the bottom once it is upright
    data = simplejpeg.encode_jpeg(pixels, 95)
    jpeg, sizes = encode_image(data[:2] + EXIF_ORIENTATION_6 + data[2:], ImageLimits(max_side))
    assert (sizes["original_width"], sizes["original_height"]) == (16, 32)
    upright = decode(jpeg)
    assert (
        upright.shape[:2]
        == (sizes["height"], sizes["width"])
        == (min(max_side, 32), min(max_side, 32) // 2)
    )
    assert upright[:4].mean() < 10
    assert upright[-4:].mean() > 245


def test_corrupt_jpeg_is_refused():
    data = simplejpeg.encode_jpeg(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    for broken in (data[: len(data) // 2], b"", b"GIF"):
        with pytest.raises(BrokenImageError):
            encode_image(broken, ImageLimits())


@pytest.mark.parametrize(
    ("limits", "size"),
    [
        (ImageLimits(max_side=60), (30, 60)),
        (ImageLimits(max_side=0, short_side=20), (20, 40)),
        (ImageLimits(max_side=60, short_side=20), (20, 40)),
        (ImageLimits(max_side=60, short_side=45), (30, 60)),
        (ImageLimits(max_side=0, short_side=0), (90, 180)),
        (ImageLimits(max_side=512, short_side=256), (90, 180)),
    ],
)
def test_both_limits_hold_and_nothing_is_enlarged(limits, size):
    data = cv2.imencode(".png", photo(90, 180))[1].tobytes()
    jpeg, sizes = encode_image(data, limits)
    assert (sizes["height"], sizes["width"]) == decode(jpeg).shape[:2] == size


def test_quality_decides_the_size_of_the_file():
    data = cv2.imencode(".png", photo())[1].tobytes()
    sizes = [len(encode_image(data, ImageLimits(jpeg_quality=q))[0]) for q in (50, 80, 95)]
    assert sizes[0] < sizes[1] < sizes[2]


@pytest.mark.parametrize(("height", "width"), [(7, 64), (2000, 20)])
def test_what_training_refuses_is_refused(height, width):
    with pytest.raises(TooSmallError, match="pixels"):
        encode_image(encode(height=height, width=width), ImageLimits())


@pytest.mark.parametrize("kind", [".png", ".jpg"])
def test_pixels_are_stored_as_they_are(kind):
    data = cv2.imencode(kind, photo(90, 180))[1].tobytes()
    limits = ImageLimits(encoding="pixels")
    stored, sizes = encode_image(data, limits)
    assert (sizes["height"], sizes["width"]) == (90, 180)
    np.testing.assert_array_equal(np.load(io.BytesIO(stored)), decode(data))
    assert encode_image(stored, limits) == (stored, sizes)
    png = cv2.imencode(".png", photo(90, 180))[1].tobytes()
    smaller, sizes = encode_image(png, ImageLimits(60, encoding="pixels"))
    expected = cv2.resize(decode(png), (60, 30), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(np.load(io.BytesIO(smaller)), expected)
    assert sizes == {"width": 60, "height": 30, "original_width": 180, "original_height": 90}
