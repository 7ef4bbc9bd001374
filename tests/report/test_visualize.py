import io

import cv2
import numpy as np
import pytest
from PIL import Image

from groupvit_jax.report import visualize

IMAGE = np.full((40, 60, 3), 100, np.uint8)
HALVES = np.zeros((40, 60), np.uint8)
HALVES[:, 30:] = 1


def difference(colours):
    """CIELAB distances (the CIE's difference of 1976) between colours."""
    lab = cv2.cvtColor(colours[None].astype(np.float32) / 255, cv2.COLOR_RGB2Lab)[0]
    return np.linalg.norm(lab[:, None] - lab, axis=-1)


@pytest.mark.parametrize(("count", "least"), [(20, 30), (80, 15), (500, 6)])
def test_colours_differ_neighbours_in_the_list_above_all(count, least):
    distance = difference(visualize.palette(count))
    assert (distance + 999 * np.eye(count)).min() > least
    assert np.diagonal(distance, 1).min() > 1.3 * least


def test_a_longer_palette_begins_with_a_shorter_one():
    np.testing.assert_array_equal(visualize.palette(50)[:7], visualize.palette(7))
    assert visualize.palette(0).shape == (0, 3)


def test_no_colour_looks_like_the_grey_of_what_has_none():
    assert (np.ptp(visualize.palette(200).astype(int), axis=1) > 30).all()


def test_each_label_gets_its_colour_and_others_are_black():
    colours = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    painted = visualize.colour(np.array([[0, 1, 255]], np.uint8), colours)
    np.testing.assert_array_equal(painted[0], [[1, 2, 3], [4, 5, 6], [0, 0, 0]])
    painted = visualize.colour(np.array([[-1, 300]]), visualize.palette(301))
    np.testing.assert_array_equal(painted[0], [[0, 0, 0], visualize.palette(301)[300]])


def test_overlay_mixes_image_and_colour_and_draws_borders():
    colours = np.array([[200, 0, 0], [0, 0, 200]], np.uint8)
    painted = visualize.overlay(IMAGE, HALVES, colours, strength=0.5)
    np.testing.assert_array_equal(painted[5, 5], [150, 50, 50])
    np.testing.assert_array_equal(painted[5, 50], [50, 50, 150])
    assert painted[5, 29].min() > 200
    assert (painted[:, 29].astype(int) > painted[:, 28]).all()


@pytest.mark.parametrize("hidden", [{"background": 0}, {}])
def test_background_and_labels_without_a_colour_show_the_photo_in_grey(hidden):
    photo = np.random.default_rng(0).integers(60, 256, (40, 60, 3)).astype(np.uint8)
    labels = HALVES if hidden else np.where(HALVES == 0, 255, 1)
    painted = visualize.overlay(photo, labels, visualize.palette(2), **hidden)[:, :29]
    assert (np.ptp(painted, axis=-1) == 0).all()
    assert painted.mean() < 0.75 * photo[:, :29].mean()
    grey = photo[:, :29].mean(-1)
    assert np.corrcoef(grey.ravel(), painted[..., 0].ravel())[0, 1] > 0.85


def test_enlarging_repeats_pixels():
    large = visualize.enlarge(HALVES, 3)
    assert large.shape == (120, 180)
    np.testing.assert_array_equal(large[::3, ::3], HALVES)


def test_grid_lays_out_rows_on_white():
    canvas = visualize.grid([[IMAGE, IMAGE], [IMAGE]], gap=2)
    assert canvas.shape == (82, 122, 3)
    assert (canvas[:40, :60] == 100).all()
    assert (canvas[42:, 62:] == 255).all()


def write(labels, names):
    """Where there is ink after names were written, as a mask."""
    blank = np.full((*labels.shape, 3), 100, np.uint8)
    return (visualize.write_names(blank, labels, names) != 100).any(-1)


def test_names_are_written_into_their_regions_and_small_regions_have_none():
    labels = np.zeros((300, 300), np.uint8)
    labels[:, 200:] = 1
    labels[:8, :8] = 2
    ink = write(labels, ["sky", "sea", "tiny"])
    assert ink[:, :200].any()
    assert ink[:, 200:].any()
    assert not ink[:40, :40].any()


def test_a_name_stands_at_the_largest_part_where_it_is_widest():
    labels = np.zeros((300, 400), np.int32)
    labels[20:60, 20:60] = 1
    labels[100:300, 200:400] = 1
    labels[190:210, 60:200] = 1  # a handle moves the centre of mass, not the name
    y, x = np.nonzero(write(labels, ["", "dog"]))
    assert abs(y.mean() - 200) < 10
    assert abs(x.mean() - 300) < 10


def test_a_name_at_the_border_is_moved_inside_whole():
    labels = np.zeros((300, 300), np.uint8)
    labels[120:180, 280:] = 1
    middle = np.zeros((300, 300), np.uint8)
    middle[120:180, 140:160] = 1
    beside, inside = (write(each, ["", "long label"]).sum() for each in (labels, middle))
    assert beside == inside > 0


def test_names_do_not_cover_each_other():
    labels = np.zeros((200, 400), np.uint8)
    labels[40:160, 150:200], labels[40:160, 200:250] = 1, 2
    both = write(labels, ["", "grandfather", "grandmother"])
    alone = [write(labels, names) for names in (["", "grandfather"], ["", "", "grandmother"])]
    assert (alone[0] & alone[1]).any()
    assert both.sum() == alone[0].sum() + alone[1].sum()


def test_letters_follow_the_size_of_the_picture():
    sizes = []
    for scale in (1, 3):
        y, _ = np.nonzero(write(np.zeros((300 * scale, 300 * scale), np.uint8), ["sky"]))
        sizes.append(np.ptp(y))
    assert 2.2 < sizes[1] / sizes[0] < 3.5


@pytest.mark.parametrize("shape", [(20, 4000), (4000, 20), (7, 5), (1, 1)])
def test_pictures_of_odd_shapes_can_be_drawn_on(shape):
    labels = (np.arange(shape[0] * shape[1]).reshape(shape) * 3) // (shape[0] * shape[1])
    image = np.full((*shape, 3), 90, np.uint8)
    painted = visualize.overlay(image, labels, visualize.palette(3))
    named = visualize.write_names(painted, labels, ["one", "two", "a very long name" * 9])
    assert named.shape == image.shape
    both = visualize.side_by_side({"input": image, "prediction": named})
    assert min(both.shape[:2]) > min(shape)


def test_wide_pictures_lie_below_each_other_and_others_beside():
    captions = ("a", "ÄÖgj")
    wide = visualize.side_by_side({name: np.zeros((50, 400, 3), np.uint8) for name in captions})
    tall = visualize.side_by_side({name: np.zeros((400, 50, 3), np.uint8) for name in captions})
    assert wide.shape[1] == 400
    assert tall.shape[1] > 100
    assert 400 < tall.shape[0] < 430


def test_png_keeps_the_channels():
    image = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    decoded = cv2.imdecode(np.frombuffer(visualize.png(image), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(decoded[..., ::-1], image)


def test_jpeg_is_nearly_the_same():
    image = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    decoded = cv2.imdecode(np.frombuffer(visualize.jpeg(image), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_allclose(decoded[..., ::-1].astype(int), image, atol=4)


@pytest.mark.parametrize("count", [1, 3, 256, 500])
def test_a_mask_keeps_its_labels_and_shows_its_colours(count):
    labels, colours = np.arange(count, dtype=np.int32)[None], visualize.palette(count)
    picture = Image.open(io.BytesIO(visualize.mask_png(labels, colours)))
    np.testing.assert_array_equal(np.asarray(picture), labels)
    if count <= 256:
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB"))[0], colours)


def test_a_mask_with_negative_labels_is_refused():
    with pytest.raises(ValueError, match="labels -1 to 1 found, expected 0 to 65535"):
        visualize.mask_png(np.array([[-1, 1]]), visualize.palette(2))


def test_names_that_cannot_be_written_are_numbers():
    image, labels = np.full((60, 90, 3), 90, np.uint8), np.full((60, 90), 3)
    expected = visualize.write_names(image, labels, ["", "", "", "#3"])
    np.testing.assert_array_equal(visualize.write_names(image, labels, [""] * 3 + ["🐶"]), expected)
    assert (expected != image).any()
