import dataclasses

import cv2
import numpy as np
import pytest
from PIL import Image

from groupvit_jax.serve.photos import Limits, data_url, receive, restore
from tests.data.image_files import declare_size, encode, photo, solid_grey_jpeg

LIMITS = Limits()


def test_a_small_photo_keeps_every_pixel():
    image = photo(60, 80)
    received = receive("a.png", data_url(encode(image, "PNG")), LIMITS)
    assert (received.name, received.height, received.width) == ("a.png", 60, 80)
    np.testing.assert_array_equal(received.pixels(LIMITS), image)


def test_a_large_photo_is_scaled_down_and_its_size_remembered():
    image = cv2.resize(photo(90, 120), (1200, 900))
    received = receive("a.jpg", data_url(encode(image, "JPEG"), "jpeg"), Limits(side=400))
    assert (received.height, received.width) == (900, 1200)
    pixels = received.pixels(Limits(side=400))
    assert pixels.shape == (300, 400, 3)
    small = cv2.resize(image, (400, 300), interpolation=cv2.INTER_AREA)
    assert np.abs(pixels.astype(int) - small).mean() < 4


def test_a_turned_photo_stands_upright():
    tags = Image.Exif()
    tags[0x0112] = 6
    data = encode(Image.fromarray(photo(40, 60)), "JPEG", exif=tags)
    received = receive("a.jpg", data_url(data, "jpeg"), LIMITS)
    assert (received.height, received.width) == (60, 40)
    assert received.pixels(LIMITS).shape == (60, 40, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (data_url(b"text"), r"a\.jpg: unknown image format"),
        (data_url(b""), r"a\.jpg: no bytes"),
        ("nothing", r"a\.jpg: no bytes"),
        ("data:image/png;base64,%%%%", r"a\.jpg: broken data URL"),
        (data_url(encode(photo(40, 60), "PNG")[:200]), r"a\.jpg: "),
        (data_url(declare_size(encode(photo(8, 8), "JPEG"), 60000, 60000)), "3600.0 megapixels"),
        (data_url(solid_grey_jpeg(8000)), "64.0 megapixels found, expected at most 50"),
    ],
)
def test_a_broken_or_huge_photo_is_named_in_one_sentence(content, message):
    with pytest.raises(ValueError, match=message) as raised:
        receive("a.jpg", content, LIMITS)
    assert "\n" not in str(raised.value)


def test_what_the_page_sends_back_is_the_photo():
    received = receive("a.png", data_url(encode(photo(60, 80), "PNG")), LIMITS)
    assert restore(dataclasses.asdict(received), LIMITS) == received


@pytest.mark.parametrize(
    "changes", [{"height": 10**9}, {"width": 0}, {"name": 3}, {"url": None}, {"height": True}]
)
def test_a_record_that_the_page_never_had_is_refused(changes):
    record = dataclasses.asdict(receive("a", data_url(encode(photo(8, 8), "PNG")), LIMITS))
    with pytest.raises(ValueError, match=r"a: .* too many|photo: expected name"):
        restore(record | changes, LIMITS)
    with pytest.raises(ValueError, match="photo: expected name"):
        restore("text", LIMITS)


def test_a_record_cannot_smuggle_in_more_pixels_than_the_working_size():
    record = dataclasses.asdict(receive("a", data_url(encode(photo(8, 8), "PNG")), LIMITS))
    large = data_url(encode(np.zeros((1500, 1500, 3), np.uint8), "PNG"))
    with pytest.raises(ValueError, match="megapixels"):
        restore(record | {"url": large}, LIMITS).pixels(LIMITS)


@pytest.mark.parametrize(
    ("values", "message"), [({"side": 0}, "side=0"), ({"labels": 300}, "labels=300")]
)
def test_wrong_limits_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        Limits(**values)
