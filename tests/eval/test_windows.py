import numpy as np
import pytest

from groupvit_jax.eval.protocol import Protocol
from groupvit_jax.eval.windows import (
    lay_out,
    resampling,
    resize_to_fit,
    round_up_size,
    window_starts,
)
from tests.eval import protocol as slow


@pytest.mark.parametrize(
    ("length", "window", "stride", "expected"),
    [
        (448, 448, 224, [0]),
        (300, 448, 224, [0]),
        (600, 448, 224, [0, 152]),
        (896, 448, 224, [0, 224, 448]),
        (900, 448, 224, [0, 224, 448, 452]),
    ],
)
def test_last_window_is_flush_with_the_border(length, window, stride, expected):
    assert window_starts(length, min(window, length), stride) == expected


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((100, 200), (448, 896)), ((1000, 100), (2048, 205)), ((448, 448), (448, 448))],
)
def test_images_are_made_to_fit_both_sides(shape, expected):
    image = np.zeros((*shape, 3), np.uint8)
    assert resize_to_fit(image, (2048, 448)).shape == (*expected, 3)


@pytest.mark.parametrize("size", [(31, 40), (90, 25), (64, 64)])
def test_images_are_resized_as_the_protocol_writes_it(size):
    image = np.random.default_rng(0).integers(0, 256, (48, 40, 3), np.uint8)
    found = resize_to_fit(image, size).astype(float)
    expected = slow.interpolate(image.astype(float), *found.shape[:2])
    assert np.abs(found - expected).max() <= 1  # a grey level


def test_resize_agrees_with_pil_as_the_protocols_use_it():
    """Enlarging: PIL's bilinear filter is antialiased only where it makes images smaller."""
    from PIL import Image

    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    theirs = Image.fromarray(image).resize((120, 90), Image.Resampling.BILINEAR)
    found = resize_to_fit(image, (200, 90))
    assert np.abs(found.astype(int) - np.asarray(theirs, int)).max() <= 1


def test_windows_cover_the_image_and_the_canvas_holds_them():
    protocol = Protocol(window=32, stride=16)
    for size in [(32, 32), (40, 33), (20, 90), (81, 100)]:
        layout = lay_out(size, protocol, 8)
        covered = np.zeros(layout.canvas, bool)
        for y, x in layout.corners:
            covered[y : y + layout.window[0], x : x + layout.window[1]] = True
        assert covered[: size[0], : size[1]].all()
        assert not covered[size[0] :].any()
        assert not covered[:, size[1] :].any()


def test_images_with_as_many_windows_share_a_canvas():
    protocol = Protocol(window=32, stride=16)
    canvases = {lay_out((32, width), protocol, 8).canvas for width in range(49, 65)}
    assert canvases == {(32, 64)}


@pytest.mark.parametrize("rule", ["drop", "pad"])
def test_sides_shorter_than_a_window_have_a_shape_for_each_number_of_patches(rule):
    """Photos longer than 2048 : 448 have such windows, of any height."""
    protocol = Protocol(window=32, stride=16, partial_patches=rule)
    found = [lay_out((height, 90), protocol, 8) for height in range(1, 33)]
    assert len({layout.encoded for layout in found}) == 4
    assert len({(layout.encoded, layout.padded, layout.canvas) for layout in found}) == 4
    image = np.random.default_rng(0).integers(1, 256, (32, 90, 3), np.uint8)
    for height, layout in enumerate(found, 1):
        assert layout.padded[0] >= layout.window[0] == height
        for window, (_, x) in zip(layout.cut(image[:height]), layout.corners, strict=True):
            assert window.pixels.shape == (*layout.encoded, 3)
            h, w = window.inside
            np.testing.assert_array_equal(window.pixels[:h, :w], image[:h, x : x + w])
            assert not window.pixels[h:].any()
            # Dropped are rows that fill no patch; a side shorter than one patch is kept.
            assert h == (max(height // 8 * 8, min(height, 8)) if rule == "drop" else height)
            assert w == 32


@pytest.mark.parametrize(("rule", "middle"), [("drop", 10.5), ("pad", 181.5 / 16 - 0.5)])
def test_patches_are_stretched_over_what_was_dropped_but_not_over_padding(rule, middle):
    """An 85 x 480 photo resizes to 363 x 2048: windows of 363 rows have 22 or 23 rows of tokens."""
    layout = lay_out((363, 2048), Protocol(partial_patches=rule), 16)
    assert layout.encoded == ((22 if rule == "drop" else 23) * 16, 448)
    rows, columns = layout.stretches(16)
    assert rows.shape == (368, layout.encoded[0] // 16)
    assert columns.shape == (448, 28)
    tokens = np.arange(rows.shape[1], dtype=np.float32)
    assert (rows @ tokens)[181] == pytest.approx(middle, abs=1e-4)
    np.testing.assert_allclose(rows.sum(1), 1, rtol=1e-6)


def test_sizes_are_rounded_up_to_four_an_octave():
    assert round_up_size((375, 500)) == (384, 512)
    assert round_up_size((48, 2000)) == (48, 2048)
    assert len({round_up_size((n, n)) for n in range(512, 1025)}) <= 5
    for length in range(1, 300):
        (rounded, _) = round_up_size((length, 1))
        assert length <= rounded <= max(length + 1, 1.25 * length)


@pytest.mark.parametrize(("old", "new"), [(5, 13), (13, 5), (1, 4), (7, 7)])
def test_resampling_is_bilinear_with_half_pixel_centres(old, new):
    line = np.random.default_rng(0).normal(size=(old, 1, 1))
    lower, upper, weight = resampling(old, new, new + 3)
    found = line[lower, 0, 0] * (1 - weight) + line[upper, 0, 0] * weight
    expected = slow.interpolate(line, new, 1)[:, 0, 0]
    np.testing.assert_allclose(found[:new], expected, atol=1e-6)
    assert (found[new:] == found[new - 1]).all()  # the padding repeats the last pixel


def test_resampling_from_patches_is_resizing_to_pixels_and_then_to_the_image():
    patches = np.linspace(0, 1, 4)[:, None, None] ** 2
    lower, upper, weight = resampling(32, 32, 32, 8)
    found = patches[lower, 0, 0] * (1 - weight) + patches[upper, 0, 0] * weight
    np.testing.assert_allclose(found, slow.interpolate(patches, 32, 1)[:, 0, 0], atol=1e-6)
