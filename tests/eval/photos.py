"""Drawn photos with masks, and the slow protocol run on them through the real towers."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from groupvit_jax.data.sources.masks import MaskedImage
from groupvit_jax.eval.encoding import encode_images, project_groups
from groupvit_jax.losses import l2_normalize
from groupvit_jax.models.preprocess import normalize
from tests.bounds import UNIT_ROUNDOFF
from tests.eval import protocol as slow

NAMES = ["dog", "cat", "tree", "house", "boat", "sky", "grass", "person"]


class Photos:
    """Noisy blocks of colour with random masks, of several sizes; a `MaskedSource`."""

    def __init__(self, sizes, num_classes=8, seed=0):
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

    def locate(self, index):
        return f"photo {index}"


def with_highest_scale(variables):
    """At this temperature random groups differ in what they like."""
    return {**variables, "params": {**variables["params"], "logit_scale": jnp.log(100.0)}}


def spread_text(encoder, variables):
    """Class embeddings in the directions in which the groups of photos differ, both ways."""

    @jax.jit
    def groups_of(images):
        _, features = encode_images(encoder.model, variables, normalize(images))
        return l2_normalize(project_groups(encoder.model, variables, features.segments))

    groups = np.asarray(groups_of(np.stack([image for image, _ in Photos([(24, 24)] * 8)])))
    groups = groups.reshape(-1, groups.shape[-1])
    mean = groups.mean(0)
    directions = np.linalg.svd(groups - mean)[2][: len(NAMES) // 2]
    directions -= np.outer(directions @ mean, mean) / (mean @ mean)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return np.concatenate([directions, -directions])


def slow_scores(encoder, variables, image, text, protocol):
    """Scores of the original pixels: resize, windows, towers in float32, the rest in float64.

    Pixels are resized by OpenCV, as the protocol has it; random towers would make much of a grey
    level (`test_windows.py` holds the resizing to that).
    """

    @jax.jit
    def towers(window):
        embedding, features = encode_images(encoder.model, variables, normalize(window))
        groups = project_groups(encoder.model, variables, features.segments)
        return groups[0], embedding[0], [a[0] for a in features.assignments]

    patch, drop = encoder.model.image_encoder.patch_size, protocol.partial_patches == "drop"

    def outputs(y, x, h, w):
        if drop:  # what remains is at least one patch, padded where the image is smaller
            h, w = (min(side, slow.tokens(side, patch, drop) * patch) for side in (h, w))
        arrays = towers(resized[None, y : y + h, x : x + w])
        return *jax.tree.map(np.float64, arrays), float(variables["params"]["logit_scale"])

    resized = image
    if protocol.resize:
        height, width = slow.fitting_size(image, *protocol.resize)
        resized = cv2.resize(image, (width, height))
    return slow.image(
        outputs, *resized.shape[:2], np.float64(text),
        size=protocol.window, stride=protocol.stride,
        patch=patch, drop=drop,
        threshold=protocol.background_threshold, constant=protocol.background_rule == "constant",
        original=image.shape[:2], kept=protocol.num_kept,
    )  # fmt: skip


def within_rounding(scores, text):
    """Whether each of the exact scores [..., C] may be the highest of a pixel in float32.

    Affinities are up to 100 times a sum of D terms, whose roundings are independent; they move both
    softmaxes, whose product is the score, by twice as much each. A class that all of three windows
    are sure of and a background that one in three finds tie at 1/3, so this happens.
    """
    relative = 4 * 100 * text.shape[-1] ** 0.5 * UNIT_ROUNDOFF
    return scores >= scores.max(-1, keepdims=True) * (1 - relative)
