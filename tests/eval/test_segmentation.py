import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from groupvit_jax.data.device_ops import normalize
from groupvit_jax.data.text import ClipTokenizer
from groupvit_jax.eval import metrics, segmentation
from groupvit_jax.eval.encoding import Encoder
from groupvit_jax.eval.masks import MaskedImage
from groupvit_jax.losses import l2_normalize
from groupvit_jax.typing import ImageFeatures
from tests.eval import protocol as slow
from tests.eval.conftest import make_mesh

NAMES = ["dog", "cat", "tree", "house", "boat", "sky", "grass", "person"]


class Images:
    """Noisy blocks of colour with random masks, of several sizes."""

    def __init__(self, sizes, num_classes, seed=0):
        rng = np.random.default_rng(seed)
        self._items = []
        for H, W in sizes:
            coarse = rng.integers(0, 256, (-(-H // 8), -(-W // 8), 3))
            image = coarse.repeat(8, 0).repeat(8, 1)[:H, :W] + rng.integers(-9, 9, (H, W, 3))
            mask = rng.integers(0, num_classes, (-(-H // 4), -(-W // 4)), np.uint8)
            mask = mask.repeat(4, 0).repeat(4, 1)[:H, :W]
            mask[0] = 255
            self._items.append(MaskedImage(np.clip(image, 0, 255).astype(np.uint8), mask))

    def __len__(self):
        return len(self._items)

    def __getitem__(self, index):
        return self._items[index]


@pytest.mark.parametrize("size", [(5, 7), (24, 16), (3, 3)])
def test_resize_is_bilinear_with_half_pixel_centres(size):
    grid = np.random.default_rng(0).normal(size=(6, 5, 3))
    found = segmentation.resize_bilinear(jnp.asarray(grid[None], jnp.float32), size)[0]
    np.testing.assert_allclose(found, slow.interpolate(grid, *size), atol=1e-5)


def test_resize_agrees_with_torch():
    torch = pytest.importorskip("torch")
    maps = np.random.default_rng(0).normal(size=(2, 9, 7, 3)).astype(np.float32)
    for size in [(31, 40), (4, 5)]:
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(maps).permute(0, 3, 1, 2), size, mode="bilinear", align_corners=False
        )
        found = segmentation.resize_bilinear(jnp.asarray(maps), size)
        np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1), atol=1e-5)


def test_group_scores_keep_the_classes_that_the_image_likes():
    groups = jnp.array([[[1, 0.9, 0, 0], [0, 0, 1, 0]]])
    image, text = jnp.array([[1, 1, 0.1, 0]]), jnp.eye(4)
    scores = segmentation.group_scores(groups, image, text, jnp.log(5.0), num_kept=2)[0]
    np.testing.assert_array_equal(np.asarray(scores) > 0, [[1, 1, 0, 0], [1, 1, 0, 0]])
    # The second group is of a class that isn't kept: its scores are low and equal.
    p = np.exp(5.0) / (np.exp(5.0) + 3)
    np.testing.assert_allclose(scores[1, :2], 0.5 * (1 - p) / 3, rtol=1e-5)


def test_scale_is_clipped_as_in_the_losses():
    inputs = [np.random.default_rng(i).normal(size=s) for i, s in enumerate([(1, 3, 8), (1, 8)])]
    text = np.linalg.qr(np.random.default_rng(3).normal(size=(8, 6)))[0].T
    groups, image, text = (jnp.asarray(a, jnp.float32) for a in (*inputs, text))
    at_limit = segmentation.group_scores(groups, image, text, jnp.log(100.0))
    beyond = segmentation.group_scores(groups, image, text, jnp.asarray(9.0))
    np.testing.assert_allclose(beyond, at_limit, rtol=1e-4, atol=1e-6)


def test_pixels_take_the_group_of_their_patch_through_all_stages():
    first = np.zeros((1, 3, 4), np.float32)  # 3 groups of 2 x 2 patches
    first[0, [0, 1, 2, 2], [0, 1, 2, 3]] = 1
    second = jnp.array([[[1.0, 0, 0], [0, 1, 1]]])
    pixels = segmentation.pixel_groups((jnp.asarray(first), second), (16, 16), 8)[0]
    assert pixels[2, 2] == 0
    assert (pixels[2, 13], pixels[13, 2], pixels[13, 13]) == (1, 1, 1)


def test_background_is_where_no_class_scores_enough():
    scores = jnp.array([[[[0.2, 0.1], [0.9, 0.0]]]])
    found = segmentation.add_background(scores, jnp.array([[[0.2, 0.1], [0.9, 0.0]]]), 0.5)
    np.testing.assert_allclose(found[0, 0], [[1, 0.2, 0.1], [0, 0.9, 0]])
    # Where even the best group is below the threshold, it still is foreground.
    low = segmentation.add_background(scores, jnp.array([[[0.2, 0.1], [0.9, 0.0]]]), 0.95)
    np.testing.assert_allclose(low[0, 0, :, 0], [1, 0])


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
    assert segmentation.window_starts(length, min(window, length), stride) == expected


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((100, 200), (448, 896)), ((1000, 100), (2048, 205)), ((448, 448), (448, 448))],
)
def test_images_are_made_to_fit_both_sides(shape, expected):
    image = np.zeros((*shape, 3), np.uint8)
    assert segmentation.resize_to_fit(image, (2048, 448)).shape == (*expected, 3)


def encode(model, variables, images):
    """Stands in for the towers: random but clear assignments and groups, made of the pixels."""
    del model, variables
    rng = np.random.default_rng(0)
    weights = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in [(6, 3), (4, 6, 3), (6, 5, 3)]]
    B, H, W = images.shape[:3]
    padded = jnp.pad(images, ((0, 0), (0, -H % 8), (0, -W % 8), (0, 0)))
    patches = padded.reshape(B, -(-H // 8), 8, -(-W // 8), 8, 3).mean((2, 4)).reshape(B, -1, 3)
    mean = patches.mean(1)
    first = jax.nn.softmax(3 * jnp.einsum("gc,blc->bgl", weights[0], patches), axis=1)
    second = jax.nn.softmax(3 * jnp.einsum("hgc,bc->bhg", weights[1], mean), axis=1)
    colours = jnp.einsum("bhg,bgl,blc->bhc", second, first, patches)
    groups = jnp.einsum("dkc,bhc->bhdk", weights[2], colours).reshape(B, 4, -1)
    return groups.mean(1), ImageFeatures(groups.mean(1), groups, (first, second))


@pytest.mark.parametrize("threshold", [None, 0.2])
@pytest.mark.parametrize(("size", "window"), [((48, 40), 48), ((40, 52), 32), ((20, 45), 24)])
def test_labels_are_those_of_the_slow_protocol(model, monkeypatch, size, window, threshold):
    monkeypatch.setattr(segmentation, "encode_images", encode)
    monkeypatch.setattr(segmentation, "project_groups", lambda model, variables, groups: groups)
    pixels = jnp.asarray(Images([size], 8)[0].image[None])
    text = l2_normalize(jnp.asarray(np.random.default_rng(1).normal(size=(8, 30)), jnp.float32))
    variables = {"params": {"logit_scale": jnp.log(10.0)}}
    original = (size[0] * 2 - 3, size[1] + 5)
    protocol = segmentation.Protocol(
        resize=None, window=window, stride=16, background_threshold=threshold
    )
    segment = jax.jit(functools.partial(segmentation.segment, model), static_argnums=(3, 4))
    found = segment(variables, pixels, text, protocol, original)[0]

    def outputs(y, x, h, w):
        embedding, features = encode(None, None, normalize(pixels[:, y : y + h, x : x + w]))
        arrays = (features.segments, embedding, list(features.assignments))
        return *jax.tree.map(lambda a: np.float64(a[0]), arrays), np.log(10.0)

    expected = slow.image(
        outputs, *size, np.float64(text),
        size=window, stride=16, patch=8, threshold=threshold, original=original,
    )  # fmt: skip
    assert len(np.unique(expected)) > 1
    assert (found == expected).mean() >= 0.999


PROTOCOL = segmentation.Protocol(resize=(64, 32), window=32, stride=16)
SIZES = [(32, 32), (40, 32), (32, 32), (32, 32)]


@pytest.fixture(scope="module")
def expected_confusion(encoder, variables):
    """One image at a time."""
    images, total = Images(SIZES, 8), np.zeros((8, 8), int)
    segment = jax.jit(functools.partial(segmentation.segment, encoder.model), static_argnums=(3, 4))
    text = jnp.asarray(encoder.class_embeddings(variables, NAMES, PROTOCOL.prompts))
    for image, mask in images:
        resized = segmentation.resize_to_fit(image, PROTOCOL.resize)[None]
        prediction = segment(variables, jnp.asarray(resized), text, PROTOCOL, mask.shape)[0]
        total += np.asarray(
            metrics.confusion_matrix(
                jnp.asarray(mask[None]), prediction[None], jnp.array([True]), 8
            )
        )
    assert total.sum() == sum((mask != 255).sum() for _, mask in images)
    return total


@pytest.mark.parametrize(("num_devices", "batch_size"), [(1, 1), (1, 2), (8, 5)])
def test_every_pixel_counts_once(model, variables, num_devices, batch_size, expected_confusion):
    encoder = Encoder(model, ClipTokenizer(32), make_mesh(num_devices))
    evaluator = segmentation.Segmentation(
        encoder, Images(SIZES, 8), NAMES, PROTOCOL, batch_size=batch_size
    )
    found = evaluator.confusion(variables)
    assert found.sum() == expected_confusion.sum()
    # Sums in another order may turn a pixel where two classes score alike.
    assert np.abs(found - expected_confusion).sum() <= 0.001 * expected_confusion.sum()


def test_evaluator_reports_each_class_by_name(encoder, variables):
    protocol = segmentation.Protocol(resize=None, window=32, stride=16, background_threshold=0.5)
    evaluator = segmentation.Segmentation(encoder, Images([(32, 32)], 3), NAMES[:2], protocol)
    scores = evaluator(variables)
    assert {"miou", "pixel_accuracy", "iou/background", "iou/dog"} <= set(scores)
    assert 0 <= scores["miou"] <= 1
