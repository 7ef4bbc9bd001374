import jax
import jax.numpy as jnp
import numpy as np
import pytest

from groupvit_jax.eval import segmentation
from groupvit_jax.eval.protocol import Protocol
from groupvit_jax.eval.windows import lay_out, resampling
from groupvit_jax.models import grouping
from tests.eval import protocol as slow
from tests.eval.test_pamr import slowly as pamr_slowly


@pytest.mark.parametrize("size", [(5, 7), (24, 16), (3, 3)])
def test_resampling_is_bilinear_with_half_pixel_centres(size):
    grid = np.random.default_rng(0).normal(size=(6, 5, 3)).astype(np.float32)
    tables = [resampling(old, new, new) for old, new in zip(grid.shape, size, strict=False)]
    found = segmentation.resample(jnp.asarray(grid), *tables)
    np.testing.assert_allclose(found, slow.interpolate(grid, *size), atol=1e-5)


def test_resampling_agrees_with_torch():
    torch = pytest.importorskip("torch")
    maps = np.random.default_rng(0).normal(size=(9, 7, 3)).astype(np.float32)
    for size in [(31, 40), (4, 5)]:
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(maps).permute(2, 0, 1)[None], size, mode="bilinear"
        )
        tables = [resampling(old, new, new) for old, new in zip((9, 7), size, strict=True)]
        found = segmentation.resample(jnp.asarray(maps), *tables)
        np.testing.assert_allclose(found, expected[0].permute(1, 2, 0), atol=1e-5)


def test_groups_keep_the_classes_that_the_image_likes():
    groups = jnp.array([[[1, 0.9, 0, 0], [0, 0, 1, 0]]])
    image, text = jnp.array([[1, 1, 0.1, 0]]), jnp.eye(4)
    classes, scores = segmentation.class_scores(image, groups, text, jnp.log(5.0), num_kept=2)
    assert set(classes[0].tolist()) == {0, 1}
    # The second group is of a class that isn't kept: its scores are low and equal.
    p = np.exp(5.0) / (np.exp(5.0) + 3)
    np.testing.assert_allclose(scores[0, 1], 0.5 * (1 - p) / 3, rtol=1e-5)


def test_the_best_of_several_names_counts():
    """Two classes with two names each give what two classes with their better names give."""
    groups = jnp.array([[[1, 0.2, 0, 0], [0, 0, 0.3, 1]]])
    image, text = jnp.array([[1, 0.5, 0.2, 0]]), jnp.eye(4)
    classes, scores = segmentation.class_scores(
        image, groups, text.reshape(2, 2, 4), jnp.log(5.0), num_kept=2
    )
    best = text[jnp.array([0, 3])]  # those that the groups are like
    _, expected = segmentation.class_scores(image, groups, best, jnp.log(5.0), num_kept=2)
    assert classes.tolist() == [[0, 1]]
    # Group 0 is like nothing of class 1, and group 1 like nothing of class 0.
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_no_more_classes_are_kept_than_there_are():
    rng = np.random.default_rng(0)
    groups, image, text = (
        jnp.asarray(rng.normal(size=s), jnp.float32) for s in [(1, 2, 4), (1, 4), (3, 4)]
    )
    classes, scores = segmentation.class_scores(image, groups, text, jnp.log(5.0), num_kept=5)
    assert sorted(classes[0].tolist()) == [0, 1, 2]
    assert scores.shape == (1, 2, 3)


def test_scale_is_clipped_as_in_the_losses():
    inputs = [np.random.default_rng(i).normal(size=s) for i, s in enumerate([(1, 3, 8), (1, 8)])]
    text = np.linalg.qr(np.random.default_rng(3).normal(size=(8, 6)))[0].T
    groups, image, text = (jnp.asarray(a, jnp.float32) for a in (*inputs, text))
    _, at_limit = segmentation.class_scores(image, groups, text, jnp.log(100.0), 5)
    _, beyond = segmentation.class_scores(image, groups, text, jnp.asarray(9.0), 5)
    np.testing.assert_allclose(beyond, at_limit, rtol=1e-4, atol=1e-6)


def test_pixels_take_the_group_of_their_patch_through_all_stages():
    first = np.zeros((1, 3, 4), np.float32)  # 3 groups of 2 x 2 patches
    first[0, [0, 1, 2, 2], [0, 1, 2, 3]] = 1
    second = jnp.array([[[1.0, 0, 0], [0, 1, 1]]])
    of_first, of_second = grouping.group_maps((jnp.asarray(first), second), (2, 2))
    np.testing.assert_array_equal(of_first[0].argmax(-1), [[0, 1], [2, 2]])
    stretches = map(jnp.asarray, lay_out((16, 16), Protocol(window=16, stride=8), 8).stretches(8))
    pixels = segmentation.stretch(of_second, *stretches)[0].argmax(-1)
    assert pixels[2, 2] == 0
    assert (pixels[2, 13], pixels[13, 2], pixels[13, 13]) == (1, 1, 1)


def join(of_group, **knobs):
    """One window of 1 x 2 pixels, each of another group."""
    groups, corners = jnp.array([[[0, 1]]]), jnp.zeros((1, 2), jnp.int32)
    protocol = Protocol(**knobs)
    return segmentation.join_windows(groups, jnp.array([of_group]), corners, (1, 2), protocol)[0]


def test_background_is_where_no_class_scores_enough_in_a_window():
    scores = [[0.2, 0.1], [0.9, 0.0]]
    found = join(scores, background_threshold=0.5)
    np.testing.assert_allclose(found, [[1, 0.2, 0.1], [0, 0.9, 0]])
    # Where even the window's best group is below the threshold, it still is foreground.
    np.testing.assert_allclose(join(scores, background_threshold=0.95)[:, 0], [1, 0])
    np.testing.assert_allclose(join(scores), scores)


def test_background_scores_a_constant_by_the_common_rule():
    scores = [[0.2, 0.1], [0.9, 0.0]]
    found = join(scores, background_threshold=0.95, background_rule="constant")
    np.testing.assert_allclose(found, [[0.95, 0.2, 0.1], [0.95, 0.9, 0]])


def test_windows_are_averaged_where_they_overlap():
    groups, corners = jnp.zeros((2, 1, 2), jnp.int32), jnp.array([[0, 0], [0, 1]])
    scores = jnp.array([[[0.2, 0.4]], [[0.6, 0.0]]])
    join_windows = jax.jit(segmentation.join_windows, static_argnums=(3, 4))
    found = join_windows(groups, scores, corners, (1, 4), Protocol())[0]
    np.testing.assert_allclose(found, [[0.2, 0.4], [0.4, 0.2], [0.6, 0.0], [0, 0]], atol=1e-6)


def test_refinement_of_a_window_is_at_its_patches():
    """TCL's order: score patches, refine them along the reduced window, then resize to pixels."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (32, 40, 3), np.uint8)
    maps = rng.uniform(size=(1, 4, 5, 3)).astype(np.float32)
    scores = rng.uniform(size=(1, 3, 2)).astype(np.float32)
    stretches = tuple(lay_out((32, 40), Protocol(), 8).stretches(8))
    size = np.array([32, 40], np.int32)
    windows = segmentation.ImageWindows(
        maps, scores, np.zeros((1, 2), np.int32), stretches, size, resampling(32, 32, 48),
        resampling(40, 40, 48), size, np.pad(pixels, ((0, 8), (0, 8), (0, 0))),
    )  # fmt: skip
    knobs = dict(pamr_iterations=3, pamr_dilations=(1, 2), pamr_place="window")
    constant = dict(background_threshold=0.4, background_rule="constant")
    found = segmentation.segment(
        jax.tree.map(jnp.asarray, windows),
        canvas=(40, 48),
        patch_size=8,
        protocol=Protocol(**knobs, **constant),
    )
    # Corners of the window and of the patches coincide: rows 0, 31/3, ..., columns 0, 39/4, ...
    reduced = np.stack(
        [
            [bilinear(pixels.astype(float), y, x) for x in np.linspace(0, 39, 5)]
            for y in np.linspace(0, 31, 4)
        ]
    )
    refined = pamr_slowly(scores[0][maps[0].argmax(-1)], reduced, 3, (1, 2))
    found = found[:32, :40]
    np.testing.assert_allclose(
        found[..., 1:], slow.interpolate(refined, 32, 40), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(found[..., 0], 0.4)  # background isn't refined


def bilinear(image, y, x):
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, len(image) - 1), min(x0 + 1, image.shape[1] - 1)
    top = image[y0, x0] * (1 - x + x0) + image[y0, x1] * (x - x0)
    bottom = image[y1, x0] * (1 - x + x0) + image[y1, x1] * (x - x0)
    return top * (1 - y + y0) + bottom * (y - y0)


def test_pixels_beyond_the_image_are_zero_after_normalisation():
    windows = jnp.full((2, 4, 6, 3), 200, jnp.uint8)
    found = segmentation.normalized_inside(windows, jnp.array([[4, 6], [3, 2]]))
    inside = np.zeros((2, 4, 6), bool)
    inside[0], inside[1, :3, :2] = True, True
    np.testing.assert_array_equal(found != 0, np.repeat(inside[..., None], 3, -1))
