import cv2
import numpy as np

from groupvit_jax.eval import visualize

IMAGE = np.full((40, 60, 3), 100, np.uint8)
HALVES = np.zeros((40, 60), np.uint8)
HALVES[:, 30:] = 1


def test_palette_has_colours_that_differ():
    colours = visualize.palette(60).astype(int)
    distance = np.abs(colours[:, None] - colours).sum(-1)
    assert (distance + 999 * np.eye(60)).min() > 8
    assert np.diagonal(distance, 1).min() > 60


def test_each_label_gets_its_colour_and_ignored_is_black():
    colours = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    painted = visualize.colour(np.array([[0, 1, 255]], np.uint8), colours)
    np.testing.assert_array_equal(painted[0], [[1, 2, 3], [4, 5, 6], [0, 0, 0]])


def test_overlay_mixes_image_and_colour_and_draws_borders():
    colours = np.array([[200, 0, 0], [0, 0, 200]], np.uint8)
    painted = visualize.overlay(IMAGE, HALVES, colours, strength=0.5)
    np.testing.assert_array_equal(painted[5, 5], [150, 50, 50])
    np.testing.assert_array_equal(painted[5, 50], [50, 50, 150])
    np.testing.assert_array_equal(painted[5, 29], [255, 255, 255])


def test_enlarging_repeats_pixels():
    large = visualize.enlarge(HALVES, 3)
    assert large.shape == (120, 180)
    np.testing.assert_array_equal(large[::3, ::3], HALVES)


def test_grid_lays_out_rows_on_white():
    canvas = visualize.grid([[IMAGE, IMAGE], [IMAGE]], gap=2)
    assert canvas.shape == (82, 122, 3)
    assert (canvas[:40, :60] == 100).all()
    assert (canvas[42:, 62:] == 255).all()


def test_names_are_written_into_their_regions():
    labels = np.zeros((300, 300), np.uint8)
    labels[:, 200:] = 1
    labels[:3, :3] = 2
    blank = np.full((300, 300, 3), 100, np.uint8)
    written = visualize.write_names(blank.copy(), labels, ["sky", "sea", "tiny"])
    ink = (written != blank).any(-1)
    assert ink[:, :200].any()
    assert ink[:, 200:].any()
    assert not ink[:20, :20].any()


def test_png_keeps_the_channels():
    image = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    decoded = cv2.imdecode(np.frombuffer(visualize.png(image), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(decoded[..., ::-1], image)
