"""Tiny models with random weights, large enough that groups differ."""

import jax
import numpy as np

from configs import tiny
from groupvit_jax.interop.pretrained import Pretrained
from groupvit_jax.segmenter import Segmenter
from tests.interop import weights

LABELS = ("dog", "grass", "frisbee")


def pretrained() -> Pretrained:
    """Both towers."""
    drawn = weights.random_pretrained(tiny.get_config().model)
    return drawn._replace(
        variables=jax.tree.map(lambda leaf: 3 * leaf if leaf.ndim == 2 else leaf, drawn.variables)
    )


def with_head(names=("background", "cat", "mat")) -> Pretrained:
    """The image tower with a segment head."""
    towers = pretrained()
    encoder = towers.variables["params"]["image_encoder"]
    width = towers.model_config.image.width
    kernel = np.random.default_rng(0).normal(size=(width, len(names))).astype(np.float32)
    head = {"classes": {"kernel": kernel, "bias": np.zeros(len(names), np.float32)}}
    params = {"image_encoder": encoder, "segment_head": head}
    return towers._replace(variables={"params": params}, class_names=tuple(names))


def segmenter() -> Segmenter:
    """A segmenter of both towers."""
    return Segmenter(pretrained())
