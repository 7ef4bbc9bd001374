import cv2
import numpy as np
import pytest

from groupvit_jax.data.images.decode import Box, BrokenImageError, decode, decode_box, read_header
from groupvit_jax.data.images.jpeg_crop import cut
from groupvit_jax.data.images.transforms import sample_crop
from groupvit_jax.prepare.images import ImageLimits, encode_image
from tests.data.image_files import photo

HEIGHT, WIDTH = 150, 200  # 13 blocks of 16 pixels in a row of 4:2:0


def _encode(image: np.ndarray, interval: int, sampling: str = "420", **options: int) -> bytes:
    factor = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{sampling}")
    flags = [cv2.IMWRITE_JPEG_RST_INTERVAL, interval, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor]
    flags += [value for name, v in options.items() for value in (getattr(cv2, name), v)]
    return cv2.imencode(".jpg", image, flags)[1].tobytes()


def _part(data: bytes, box: Box):
    header = read_header(data)
    rows = range(box.top, box.top + box.height)
    columns = range(box.left, box.left + box.width)
    return cut(data, header.tiles, (header.height, header.width), rows, columns)


@pytest.mark.parametrize(
    ("interval", "sampling"), [(1, "420"), (13, "420"), (5, "444"), (25, "444"), (1, "422")]
)
def test_a_crop_is_that_of_the_whole(interval, sampling):
    data = _encode(photo(HEIGHT, WIDTH), interval, sampling)
    header, whole = read_header(data), decode(data)
    rng = np.random.default_rng(0)
    boxes = [sample_crop(HEIGHT, WIDTH, rng, area=(0.02, 1.0)) for _ in range(60)]
    for box in [*boxes, Box(0, 0, HEIGHT, WIDTH), Box(149, 199, 1, 1), Box(0, 0, 1, 1)]:
        expected = whole[box.top : box.top + box.height, box.left : box.left + box.width]
        np.testing.assert_array_equal(decode_box(data, header, box), expected)


def test_what_is_cut_off_is_not_decoded():
    data = _encode(photo(HEIGHT, WIDTH), 1)
    part = _part(data, Box(70, 100, 20, 30))
    assert (part.top, part.left, part.height, part.width) == (64, 96, 32, 48)
    assert decode(part.data).shape == (32, 48, 3)
    assert len(part.data) < len(data) / 4


def test_grey_images_have_tiles_too():
    data = _encode(photo(HEIGHT, WIDTH)[..., 0], 5)
    box = Box(30, 90, 50, 60)
    np.testing.assert_array_equal(
        decode_box(data, read_header(data), box), decode(data)[30:80, 90:150]
    )
    assert len(_part(data, box).data) < len(data) / 2


@pytest.mark.parametrize("options", [dict(), dict(IMWRITE_JPEG_PROGRESSIVE=1)])
def test_files_without_tiles_have_none(options):
    interval = 13 if options else 2  # 2 does not divide a row
    assert read_header(_encode(photo(HEIGHT, WIDTH), interval, **options)).tiles is None
    assert read_header(_encode(photo(HEIGHT, WIDTH), 0)).tiles is None


def test_damaged_markers_are_not_cut():
    data = _encode(photo(HEIGHT, WIDTH), 13)
    box, first = Box(60, 60, 40, 40), data.index(b"\xff\xd0")
    assert _part(data, box) is not None
    wrong = data[:first] + b"\xff\xd5" + data[first + 2 :]
    missing = data[:first] + data[first + 2 :]
    half, none = data[: len(data) // 2], data[: read_header(data).tiles.scan_offset]
    for damaged in (wrong, missing, half, none):
        assert _part(damaged, box) is None
    for truncated in (half, none):
        with pytest.raises(BrokenImageError, match="JPEG"):
            decode_box(truncated, read_header(truncated), Box(0, 0, HEIGHT, WIDTH))


@pytest.mark.parametrize("width", [17, 200, 341, 352])
def test_prepared_images_have_tiles(width):
    data = cv2.imencode(".png", photo(100, width))[1].tobytes()
    jpeg, _ = encode_image(data, ImageLimits())
    tiles = read_header(jpeg).tiles
    assert tiles.height == 16
    assert tiles.width % 16 == 0
