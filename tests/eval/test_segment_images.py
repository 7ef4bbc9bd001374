import numpy as np
import pytest

from groupvit_jax.eval import metrics
from groupvit_jax.eval.inference import WindowEncoder
from groupvit_jax.eval.protocol import Protocol
from groupvit_jax.eval.segment_images import ImageSegmenter
from tests.compilations import compilations
from tests.eval.photos import (
    NAMES,
    Photos,
    slow_scores,
    spread_text,
    with_highest_scale,
    within_rounding,
)

# Landscape and portrait, square, odd, larger and smaller than the window, up to 1 : 9. With its
# 18 rows, one is no multiple of the patches of 8.
SIZES = [
    (24, 32), (32, 24), (25, 25), (17, 24), (38, 50), (50, 33), (60, 26), (16, 16), (49, 22),
    (20, 45), (31, 31), (64, 48), (10, 23), (23, 10), (35, 19), (18, 55), (5, 45), (45, 6),
    (42, 30), (12, 12),
]  # fmt: skip
KNOBS = dict(resize=(56, 28), window=24, stride=12)
PROTOCOLS = {
    "no background": Protocol(**KNOBS),
    "background": Protocol(**KNOBS, background_threshold=0.5),
    # Not 0.5, which is what a class scores that one of two windows is sure of.
    "constant": Protocol(
        **KNOBS,
        background_threshold=0.45,
        background_rule="constant",
        partial_patches="pad",
    ),
}


@pytest.fixture(scope="module")
def variables(variables):
    return with_highest_scale(variables)


@pytest.fixture(scope="module")
def text(encoder, variables):
    return spread_text(encoder, variables)


def segment(encoder, variables, text, protocol, images):
    return list(
        ImageSegmenter(WindowEncoder(encoder, protocol, views=True))(variables, text, images)
    )


@pytest.mark.parametrize("name", PROTOCOLS)
def test_labels_and_miou_are_those_of_the_slow_protocol(encoder, variables, text, name):
    protocol, photos = PROTOCOLS[name], Photos(SIZES if name == "background" else SIZES[::5])
    num_classes = len(NAMES) + protocol.has_background
    found = segment(encoder, variables, text, protocol, [image for image, _ in photos])
    same, tied, confusions = [], [], np.zeros((2, num_classes, num_classes), int)
    for (image, mask), segmented in zip(photos, found, strict=True):
        scores = slow_scores(encoder, variables, image, text, protocol)
        expected, possible = scores.argmax(-1), within_rounding(scores, text)
        tie = possible.sum(-1) > 1
        # In a tie any of its classes is right; the others are compared as they are.
        chosen = np.take_along_axis(possible, segmented.mask[..., None], -1)[..., 0]
        assert chosen[tie].all()
        tied.append(tie)
        same.append(segmented.mask[~tie] == expected[~tie])
        for confusion, labels in zip(confusions, (segmented.mask, expected), strict=True):
            counted = (mask != 255) & ~tie
            np.add.at(confusion, (mask[counted], labels[counted]), 1)
    # Scores of random towers are often 0 or 1 to rounding: where two windows disagree, they tie.
    assert np.concatenate([t.ravel() for t in tied]).mean() < 0.15
    labels = np.concatenate([segmented.mask.ravel() for segmented in found])
    assert len(np.unique(labels)) > 3
    assert np.concatenate(same).mean() >= 0.999
    ours, slow = (100 * metrics.mean_iou(confusion) for confusion in confusions)
    assert abs(ours - slow) <= 0.01


def test_a_tie_of_class_and_background_is_one_to_rounding(encoder, variables, text):
    """At 20 pixels and more a class and the background have equal scores, such as 1/3 or 0.461."""
    protocol, image = PROTOCOLS["background"], Photos(SIZES)[SIZES.index((5, 45))].image
    exact = np.sort(slow_scores(encoder, variables, image, text, protocol), axis=-1)
    (found,) = segment(encoder, variables, text, protocol, [image])
    ours = np.sort(found.scores, axis=-1)
    tie = exact[..., -1] - exact[..., -2] < 2e-8  # half a unit in float32's last place at 1/3
    assert tie.sum() >= 20
    np.testing.assert_allclose(ours[tie][:, -2:], exact[tie][:, -2:], rtol=4 * 2.0**-24)


def test_scores_are_of_the_classes_that_were_kept(encoder, variables, text):
    image = Photos([(60, 80)])[0].image
    (found,) = segment(encoder, variables, text, PROTOCOLS["background"], [image])
    assert found.scores.shape == (60, 80, len(found.classes))
    np.testing.assert_array_equal(found.mask, found.classes[found.scores.argmax(-1)])
    assert found.classes[0] == 0
    assert len(set(found.classes.tolist())) == len(found.classes)


def test_groups_of_every_stage_are_of_the_whole_image(encoder, variables, text):
    image = Photos([(45, 90)])[0].image
    (found,) = segment(encoder, variables, text, PROTOCOLS["no background"], [image])
    stages = encoder.model.image_encoder.num_output_groups
    assert len(found.groups) == len(stages)
    for groups, count in zip(found.groups, stages, strict=True):
        assert groups.shape == (45, 90)
        assert 0 <= groups.min() <= groups.max() < count
    assert len(np.unique(found.groups[0])) > 1


def test_images_keep_their_order_whatever_their_sizes(encoder, variables, text):
    images = [image for image, _ in Photos([(10, 90), (48, 64), (32, 32), (90, 11), (48, 64)])]
    together = segment(encoder, variables, text, PROTOCOLS["no background"], images)
    for image, found in zip(images, together, strict=True):
        (alone,) = segment(encoder, variables, text, PROTOCOLS["no background"], [image])
        np.testing.assert_array_equal(found.mask, alone.mask)


def test_photos_of_another_size_compile_no_image_tower(encoder, variables, text):
    protocol = Protocol(**KNOBS, num_kept=3)  # of no other test, whose programs would be reused
    segmenter = ImageSegmenter(WindowEncoder(encoder, protocol, views=True))

    def compiled(*sizes):
        with compilations() as names:
            for size in sizes:
                list(segmenter(variables, text, [Photos([size])[0].image]))
        return names

    assert "jit(segment)" in compiled((24, 32))
    assert compiled((23, 31), (24, 32)) == []
    # What joins windows is compiled for each rounded size, in less than a second.
    assert "jit(segment)" in (names := compiled((40, 61)))
    assert set(names) <= {"jit(segment)", "jit(_likeliest)"}
    assert compiled((38, 57)) == []
    # Longer than 56 : 28, so that the short side is 8 to 15 pixels: one row of patches.
    compiled((9, 60))
    assert "jit(encode)" not in compiled((10, 62), (12, 64), (60, 60))


def test_refining_follows_the_image_not_its_padding(encoder, variables, text):
    """With pixels of one colour all neighbours weigh alike: scores stay as even as they are."""
    protocol = Protocol(**KNOBS, pamr_iterations=2, pamr_dilations=(1, 2))
    image = Photos([(40, 53)])[0].image
    (found,) = segment(encoder, variables, text, protocol, [image])
    (raw,) = segment(encoder, variables, text, PROTOCOLS["no background"], [image])
    assert found.mask.shape == raw.mask.shape
    assert (found.mask != raw.mask).any()
    assert found.scores.min() >= 0  # what lies beyond the image doesn't flow in
    sums = found.scores.sum(-1), raw.scores.sum(-1)
    assert sums[1].min() - 1e-5 <= sums[0].min() <= sums[0].max() <= sums[1].max() + 1e-5
