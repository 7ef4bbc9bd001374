import functools
import http.server
import io
import threading

import cv2
import numpy as np
import pytest
from PIL import Image

from groupvit_jax.data.images.decode import decode
from groupvit_jax.data.images.photo import read_photo

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 4), dtype=np.uint8)
RGB = PIXELS[..., :3]


def save(path, image, **options):
    image.save(path, **options)
    return path


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def test_a_file_a_picture_and_an_array_are_the_same(tmp_path):
    picture = Image.fromarray(RGB)
    path = save(tmp_path / "photo.png", picture)
    for photo in (path, str(path), Image.open(path), picture, RGB):
        np.testing.assert_array_equal(read_photo(photo), RGB)


def test_grey_has_three_equal_channels(tmp_path):
    grey = Image.fromarray(RGB[..., 0])
    path = save(tmp_path / "grey.png", grey)
    for photo in (path, grey, RGB[..., 0], RGB[..., :1]):
        np.testing.assert_array_equal(read_photo(photo), np.repeat(RGB[..., :1], 3, axis=2))


def test_transparency_is_laid_on_white_alike(tmp_path):
    picture = Image.fromarray(PIXELS)
    path = save(tmp_path / "transparent.png", picture)
    expected = decode(path.read_bytes())
    for photo in (path, picture, PIXELS):
        np.testing.assert_array_equal(read_photo(photo), expected)
    clear = np.zeros((2, 2, 4), np.uint8)
    assert (read_photo(clear) == 255).all()


def test_a_transparent_colour_of_a_palette_is_white():
    picture = Image.fromarray(np.array([[0, 1]], np.uint8), "L").convert("P")
    picture.putpalette([200, 0, 0, 0, 0, 200])
    file = io.BytesIO()
    picture.save(file, "PNG", transparency=0)
    found = read_photo(Image.open(io.BytesIO(file.getvalue())))
    np.testing.assert_array_equal(found, [[[255, 255, 255], [0, 0, 200]]])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_upright_whatever_their_exif_says(tmp_path, orientation):
    large = cv2.resize(RGB, (90, 60), interpolation=cv2.INTER_CUBIC)
    path = tmp_path / "photo.jpg"
    save(path, Image.fromarray(large), quality=95, exif=exif(orientation))
    found = read_photo(path).astype(int)
    assert found.shape[:2] == ((60, 90) if orientation < 5 else (90, 60))
    np.testing.assert_allclose(found, read_photo(Image.open(path)), atol=3)
    if orientation == 6:  # the camera was turned: the first row is the right side
        stored = np.asarray(Image.open(path).convert("RGB"))
        np.testing.assert_allclose(found[:, -1], stored[0], atol=3)


def test_16_bits_keep_their_high_byte():
    deep = Image.fromarray(np.array([[0x1234, 0xFF00]], np.uint16))
    np.testing.assert_array_equal(read_photo(deep)[0, :, 0], [0x12, 0xFF])


def test_cmyk_becomes_rgb():
    assert read_photo(Image.new("CMYK", (3, 2), (0, 0, 0, 0))).tolist() == [[[255] * 3] * 3] * 2


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        (np.zeros((4, 4, 3), np.int32), r"cat: int32 array of shape \(4, 4, 3\) found, expec"),
        (np.zeros((4, 4, 2), np.uint8), r"cat: uint8 array of shape \(4, 4, 2\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), "expected uint8 "),
        (np.zeros((0, 4, 3), np.uint8), "expected some pixels"),
        (Image.new("F", (2, 2)), "cat: PIL mode 'F' found"),
        (None, "cat: NoneType found, expected a path, a PIL image or an array"),
    ],
)
def test_what_is_no_photo_is_named(photo, message):
    with pytest.raises(ValueError, match=message) as error:
        read_photo(photo, "cat")
    assert "\n" not in str(error.value)


def test_files_that_are_missing_or_broken_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.jpg: no such file"):
        read_photo(tmp_path / "none.jpg")
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.jpg: unknown image format"):
        read_photo(tmp_path / "text.jpg")


def test_files_beyond_the_limit_are_named_with_both_sizes(tmp_path):
    path = save(tmp_path / "photo.png", Image.fromarray(RGB))
    for photo, name in ((path, "photo.png"), (path.read_bytes(), "image")):
        with pytest.raises(ValueError, match=rf"{name}: png of 6x9 .* the limit is 0\.0"):
            read_photo(photo, max_pixels=53)
        np.testing.assert_array_equal(read_photo(photo, max_pixels=54), RGB)
    np.testing.assert_array_equal(read_photo(RGB, max_pixels=1), RGB)


@pytest.fixture
def address(tmp_path):
    """Serves a folder on this machine."""
    save(tmp_path / "photo.png", Image.fromarray(RGB))
    (tmp_path / "page.html").write_text("no photo")
    handler = functools.partial(QuietHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def test_addresses_and_bytes_are_photos(address, tmp_path):
    np.testing.assert_array_equal(read_photo(f"{address}/photo.png"), RGB)
    np.testing.assert_array_equal(read_photo((tmp_path / "photo.png").read_bytes()), RGB)
    with pytest.raises(ValueError, match=r"/none.png: can't be fetched \(HTTP Error 404"):
        read_photo(f"{address}/none.png")
    with pytest.raises(ValueError, match=r"http://.*/page.html: unknown image format"):
        read_photo(f"{address}/page.html")
    with pytest.raises(ValueError, match=r"image: unknown image format"):
        read_photo(b"no photo")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_from_0_to_1_are_photos(dtype):
    np.testing.assert_allclose(read_photo((RGB / 255).astype(dtype)), RGB, atol=1)
    with pytest.raises(ValueError, match=r"image: floats from -1 to 0.5 found, expected 0 to 1"):
        read_photo(np.array([[-1, 0.5]], dtype))


def test_channels_first_is_named():
    channels_first = RGB.transpose(2, 0, 1)
    np.testing.assert_array_equal(read_photo(channels_first, layout="CHW"), RGB)
    with pytest.raises(
        ValueError, match=r"shape \(3, 6, 9\) found, .*; for \[3, H, W\] say layout"
    ):
        read_photo(channels_first)
    with pytest.raises(ValueError, match=r"layout: 'chw' found, expected one of"):
        read_photo(channels_first, layout="chw")
