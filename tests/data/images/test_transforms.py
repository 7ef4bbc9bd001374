import math

import numpy as np
import PIL.Image
import pytest
from scipy import stats

from benchmarks import pil_pipeline
from groupvit_jax.data.images.decode import BrokenImageError
from groupvit_jax.data.images.transforms import (
    Augmentation,
    random_resized_crop,
    resize,
    resize_and_center_crop,
    resize_like_pil,
    sample_crop,
    train_transform,
)
from tests.data.image_files import encode, photo, solid_grey_jpeg

PHOTO = photo(300, 400)
JPEG = encode(PHOTO, "JPEG", quality=90)


def _augment(**changes):
    return Augmentation(**changes)


def _pil_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    resized = PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.BILINEAR)
    return np.asarray(resized).astype(int)


def _rms(difference: np.ndarray) -> float:
    return float(np.sqrt((difference.astype(float) ** 2).mean()))


def test_crops_that_always_fit_are_uniform():
    rng = np.random.default_rng(0)
    boxes = np.array([sample_crop(2000, 2000, rng, area=(0.08, 0.5)) for _ in range(5000)])
    top, left, height, width = boxes.T
    area = height * width / 2000**2
    assert stats.kstest(area, stats.uniform(0.08, 0.42).cdf).pvalue > 0.01
    bounds = stats.uniform(math.log(3 / 4), math.log(16 / 9))
    assert stats.kstest(np.log(width / height), bounds.cdf).pvalue > 0.01
    for start, size in ((top, height), (left, width)):
        assert (start + size <= 2000).all()
        assert stats.kstest(start / (2001 - size), stats.uniform.cdf).pvalue > 0.01


def test_crops_are_distributed_as_timms():
    """Against deciles of 200,000 crops by timm 1.0.31 of an image of 375 x 500 pixels."""
    rng = np.random.default_rng(0)
    boxes = np.array([sample_crop(375, 500, rng) for _ in range(10_000)])
    top, left, height, width = boxes.T
    timm = {
        "area": [0.149, 0.217, 0.285, 0.353, 0.422, 0.49, 0.558, 0.633, 0.736],
        "log ratio": [-0.209, -0.139, -0.073, -0.012, 0.045, 0.099, 0.15, 0.198, 0.244],
        "top": [0.008, 0.024, 0.043, 0.067, 0.096, 0.133, 0.181, 0.245, 0.344],
        "left": [0.032, 0.066, 0.104, 0.144, 0.186, 0.236, 0.292, 0.358, 0.454],
    }
    area, ratio = height * width / (375 * 500), np.log(width / height)
    ours = {"area": area, "log ratio": ratio, "top": top / 375, "left": left / 500}
    for name, deciles in timm.items():
        quantiles = np.quantile(ours[name], np.arange(1, 10) / 10)
        np.testing.assert_allclose(quantiles, deciles, atol=0.015, err_msg=name)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(1000, 10, (493, 0, 13, 10)), (10, 1000, (0, 493, 10, 13)), (1, 1, (0, 0, 1, 1))],
)
def test_where_no_crop_fits_the_centre_is_taken(height, width, expected):
    assert sample_crop(height, width, np.random.default_rng(0), area=(0.9, 1.0)) == expected


@pytest.mark.parametrize("size", [(100, 134), (200, 260), (140, 300), (64, 64), (450, 500)])
def test_resize_is_close_to_pil(size):
    expected = _pil_resize(PHOTO, *size)
    difference = resize(PHOTO, *size) - expected
    assert _rms(difference) < 1.1  # plain bilinear interpolation: 1.4 to 6.3 where it shrinks
    assert abs(difference.mean()) < 0.25


def test_resize_does_not_alias():
    stripes = np.zeros((300, 300, 3), np.uint8)
    stripes[:, ::2] = 255
    for size in (140, 100, 60):
        assert np.abs(resize(stripes, size, size).astype(int) - 127.5).max() < 26
        assert np.abs(resize(stripes.transpose(1, 0, 2), size, size) - 127.5).max() < 26


@pytest.mark.parametrize("size", [(100, 134), (256, 341), (37, 300), (300, 37), (450, 500), (1, 1)])
def test_resize_like_pil(size):
    np.testing.assert_allclose(resize_like_pil(PHOTO, *size), _pil_resize(PHOTO, *size), atol=1)


@pytest.mark.parametrize("shape", [(300, 400), (401, 300), (256, 256), (50, 70)])
def test_resize_and_center_crop(shape):
    image = photo(*shape)
    result = resize_and_center_crop(image, 64, 56)
    height, width = (int(64 * side / min(shape)) for side in shape)
    top, left = round((height - 56) / 2), round((width - 56) / 2)
    expected = _pil_resize(image, height, width)[top : top + 56, left : left + 56]
    np.testing.assert_allclose(result, expected, atol=1)


def test_random_resized_crop():
    image = PHOTO.copy()
    crop = random_resized_crop(image, 64, np.random.default_rng(3))
    top, left, height, width = sample_crop(300, 400, np.random.default_rng(3))
    expected = _pil_resize(image[top : top + height, left : left + width], 64, 64)
    assert _rms(crop - expected) < 1.0
    np.testing.assert_array_equal(image, PHOTO)


def test_train_transform_is_the_published_pipeline():
    """With one seed, the same crop, flip and operations as PIL, and nearly the same pixels."""
    augment, differences = _augment(), []
    for seed in range(60):
        ours = train_transform(JPEG, 64, augment, np.random.default_rng(seed))
        pil = pil_pipeline.train_transform(JPEG, 64, augment, np.random.default_rng(seed))
        assert ours.shape == (64, 64, 3)
        assert ours.dtype == np.uint8
        assert ours.flags.c_contiguous
        differences.append(np.abs(ours.astype(int) - pil).mean())
    assert np.median(differences) < 1.5
    assert np.max(differences) < 5  # a wrong crop or operation is 30 and more away


def test_train_transform_uses_its_settings():
    plain = dict(num_ops=0, flip=0.0, min_area=1.0, max_area=1.0, min_ratio=4 / 3, max_ratio=4 / 3)
    whole = train_transform(JPEG, 100, _augment(**plain), np.random.default_rng(0))
    assert _rms(whole - _pil_resize(PHOTO, 100, 100)) < 8
    flipped = train_transform(
        JPEG, 100, _augment(**plain | {"flip": 1.0}), np.random.default_rng(0)
    )
    np.testing.assert_array_equal(flipped, whole[:, ::-1])


def test_colours_change_as_often_as_set():
    colour = np.full((16, 16, 3), (200, 60, 60), np.uint8)
    data, rng = encode(colour, "PNG"), np.random.default_rng(0)
    plain = dict(num_ops=0, flip=0.0, min_area=1.0, min_ratio=1.0, max_ratio=1.0)
    gray = _augment(**plain, grayscale=0.3)
    pixels = np.array([train_transform(data, 8, gray, rng)[0, 0] for _ in range(400)])
    assert stats.binomtest(int((np.ptp(pixels, 1) == 0).sum()), 400, 0.3).pvalue > 0.01
    turned = _augment(**plain, hue=0.1)
    pixels = np.array([train_transform(data, 8, turned, rng)[0, 0] for _ in range(400)])
    # From red 18 of 180 to either side: one channel beside the strongest rises to at most 0.6 of
    # the way, by the sixth of the circle that is 30.
    assert pixels[:, 0].min() >= 199
    assert 0.5 < (pixels.max(0)[1] - 60) / 140 < 0.62
    assert 0.5 < (pixels.max(0)[2] - 60) / 140 < 0.62


def test_half_of_the_images_are_flipped():
    augment = _augment(num_ops=0, min_area=1.0, min_ratio=4 / 3)
    ramp = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None] * 5, (30, 40, 3))
    data, rng = encode(np.ascontiguousarray(ramp), "PNG"), np.random.default_rng(0)
    images = [train_transform(data, 8, augment, rng) for _ in range(400)]
    flips = sum(int(image[0, 0, 0] > image[0, -1, 0]) for image in images)
    assert stats.binomtest(flips, 400).pvalue > 0.01


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_training_honours_orientation(orientation):
    image = np.zeros((64, 64, 3), np.uint8)
    image[:32] = 255  # the stored upper half
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    data = encode(image, "JPEG", exif=exif)
    augment = _augment(num_ops=0, flip=0.0, min_area=1.0, min_ratio=1.0, max_ratio=1.0)
    result = train_transform(data, 16, augment, np.random.default_rng(0))
    # Where the stored upper half is shown.
    half = {1: np.s_[:7], 3: np.s_[9:], 6: np.s_[:, 9:], 8: np.s_[:, :7]}[orientation]
    assert result[half].mean() > 250
    assert result.mean() == pytest.approx(127.5, abs=3)


def test_same_generator_same_image():
    images = [train_transform(JPEG, 48, _augment(), np.random.default_rng(s)) for s in (1, 1, 2)]
    np.testing.assert_array_equal(images[0], images[1])
    assert (images[0] != images[2]).any()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP"])
def test_trains_on_every_kind(kind):
    image = train_transform(encode(PHOTO, kind), 32, _augment(), np.random.default_rng(0))
    assert image.shape == (32, 32, 3)


@pytest.mark.parametrize("shape", [(1, 1), (7, 100), (100, 7)])
def test_too_small_images_are_broken(shape):
    data = encode(photo(*shape), "PNG")
    with pytest.raises(BrokenImageError, match=f"png of {shape[0]}x{shape[1]} pixels; expected"):
        train_transform(data, 32, _augment(), np.random.default_rng(0))


def test_a_100_megapixel_jpeg_is_trained_on():
    augment = _augment(num_ops=0)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        image = train_transform(solid_grey_jpeg(10_000), 224, augment, rng)
        assert (image == 128).all()
