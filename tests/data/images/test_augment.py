import numpy as np
import PIL.Image
import pytest
from scipy import stats

from benchmarks import pil_pipeline
from groupvit_jax.data.images import augment
from groupvit_jax.data.images.augment import FILL, OPERATIONS, rand_augment
from groupvit_jax.models.preprocess import IMAGENET_MEAN
from tests.data.image_files import photo

PHOTO = photo(96, 128)
GEOMETRIC = {"Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"}
STRENGTHS = (0.0, 0.31, 0.75, 0.9, 0.96, 1.0)


def test_the_fifteen_operations():
    assert list(OPERATIONS) == list(pil_pipeline.OPERATIONS)
    assert len(OPERATIONS) == 15
    assert tuple(round(255 * mean) for mean in IMAGENET_MEAN) == FILL


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_those_of_pil(name, strength, sign):
    ours = OPERATIONS[name](PHOTO, sign * strength).astype(int)
    pil = pil_pipeline.OPERATIONS[name](PIL.Image.fromarray(PHOTO), sign * strength)
    difference = np.abs(ours - np.asarray(pil)).max(axis=-1)
    if name in GEOMETRIC:  # PIL's filled border is sharp, OpenCV's blends over one pixel
        assert (difference > 2).mean() < 0.02
        filled, pil_filled = ((a == FILL).all(axis=-1).mean() for a in (ours, np.asarray(pil)))
        assert filled == pytest.approx(pil_filled, abs=0.02)
    else:
        assert difference.max() <= 2
    assert difference.mean() < 1.5


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in GEOMETRIC])
@pytest.mark.parametrize("value", [0, 77, 255])
def test_operations_on_a_plain_image(name, value):
    plain = np.full((8, 8, 3), value, np.uint8)
    pil = np.asarray(pil_pipeline.OPERATIONS[name](PIL.Image.fromarray(plain), 0.9))
    np.testing.assert_allclose(OPERATIONS[name](plain, 0.9).astype(int), pil, atol=1)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_leave_their_input(name):
    image = PHOTO.copy()
    result = OPERATIONS[name](image, 0.9)
    result[:] = 0
    np.testing.assert_array_equal(image, PHOTO)


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, float]]:
    """Replaces every operation by one that records its name and strength."""
    recorded = []

    def recorder(name):
        def operation(image, strength):
            recorded.append((name, strength))
            return image

        return operation

    monkeypatch.setattr(augment, "OPERATIONS", {name: recorder(name) for name in OPERATIONS})
    return recorded


def test_draws_have_the_published_distribution(calls):
    rng, count = np.random.default_rng(0), 6000
    per_image = []
    for _ in range(count):
        before = len(calls)
        rand_augment(PHOTO, rng)
        per_image.append(len(calls) - before)
    applied = np.bincount(per_image, minlength=3)
    assert stats.chisquare(applied, np.array([0.25, 0.5, 0.25]) * count).pvalue > 0.01
    names = [name for name, _ in calls]
    assert stats.chisquare([names.count(name) for name in OPERATIONS]).pvalue > 0.01
    strengths = np.array([strength for _, strength in calls])
    assert stats.binomtest(int((strengths > 0).sum()), len(strengths)).pvalue > 0.01
    levels = np.abs(strengths) * 10
    assert levels.max() == 10.0
    assert (levels == 10.0).mean() == pytest.approx(stats.norm.sf(2), abs=0.005)
    below = stats.truncnorm(-np.inf, 2, loc=9, scale=0.5).cdf
    assert stats.kstest(levels[levels < 10], below).pvalue > 0.01


def test_settings_are_used(calls):
    rng = np.random.default_rng(0)
    for _ in range(100):
        rand_augment(PHOTO, rng, num_ops=3, magnitude=4.0, magnitude_std=0.0, probability=1.0)
    assert len(calls) == 300
    assert {abs(strength) for _, strength in calls} == {0.4}
    rand_augment(PHOTO, rng, num_ops=0)
    rand_augment(PHOTO, rng, probability=0.0)
    assert len(calls) == 300


def test_outputs_are_distributed_as_timms():
    """Against deciles of 100,000 draws of timm 1.0.31's `rand-m9-mstd0.5-inc1` on this image.

    With img_mean (124, 116, 104), bilinear interpolation and PIL 13.
    """
    y, x = np.mgrid[:64, :64]
    waves = 128 + 60 * np.sin(x / 5) * np.cos(y / 7)
    image = np.stack([40 + 2 * x, 60 + 2.5 * y, waves], axis=-1).astype(np.uint8)
    rng = np.random.default_rng(0)
    results = np.stack([rand_augment(image, rng) for _ in range(3000)]).astype(int)
    change = np.abs(results - image).mean(axis=(1, 2, 3))
    assert (change == 0).mean() == pytest.approx(0.2518, abs=0.02)
    assert change.mean() == pytest.approx(33.29, abs=1.0)
    deciles = np.arange(1, 10) / 10
    timm = [0.0, 0.0, 17.75, 24.53, 29.12, 36.32, 47.97, 63.99, 67.28]
    np.testing.assert_allclose(np.quantile(change, deciles), timm, atol=0.5, rtol=0.05)
    timm = [111.17, 118.5, 122.61, 123.0, 123.0, 123.44, 125.96, 132.0, 134.1]
    means = results.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(np.quantile(means, deciles), timm, atol=3.0)


def test_same_generator_same_result():
    a, b = (rand_augment(PHOTO, np.random.default_rng(7), probability=1.0) for _ in range(2))
    c = rand_augment(PHOTO, np.random.default_rng(8), probability=1.0)
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


@pytest.mark.parametrize("share", [-0.5, -0.1, 0.0, 1 / 15, 0.25])
def test_hues_turn_like_pils(share):
    image = photo(60, 80)
    hsv = np.array(PIL.Image.fromarray(image).convert("HSV"))
    hsv[..., 0] += np.int64(round(share * 256)).astype(np.uint8)
    turned = PIL.Image.frombytes("HSV", (80, 60), hsv.tobytes())
    expected = np.array(turned.convert("RGB"))
    difference = augment.shift_hue(image, share).astype(int) - expected
    # Both round a hue, to 1/180 and 1/256 of the circle: where the channels differ by 255, an edge
    # of the colour cube has 255 steps in a sixth of the circle.
    assert np.abs(difference).max() <= 255 * 6 * (0.5 / 180 + 1.5 / 256) + 2


def test_grayscale_is_pils():
    image = photo(60, 80)
    gray = np.array(PIL.Image.fromarray(image).convert("L").convert("RGB"))
    np.testing.assert_allclose(augment.to_grayscale(image), gray, atol=1)
