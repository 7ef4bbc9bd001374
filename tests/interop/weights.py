"""Models with random weights in which every parameter matters."""

import math
import zlib

import numpy as np
from ml_collections import ConfigDict

from configs import base, tiny
from groupvit_jax.data.text.vocabulary import CLIP
from groupvit_jax.interop.layout import expected_shapes, unflatten
from groupvit_jax.interop.pretrained import Pretrained, to_host
from groupvit_jax.models import build_model

# What a case changes of the published model, and the size of its images.
CASES = {
    "gcc_yfcc": ({}, (224, 224)),
    "gcc_redcaps": ({"share_logit_scale": True}, (224, 224)),
    "one_stage": (
        {"depths": (9, 3), "num_group_tokens": (8, 0), "num_output_groups": (8,)},
        (224, 224),
    ),
    "three_stage": (
        {
            "depths": (3, 3, 3, 3),
            "num_group_tokens": (64, 16, 8, 0),
            "num_output_groups": (64, 16, 8),
        },
        (224, 224),
    ),
    "patch_8": ({"patch_size": 8}, (224, 224)),
    "448x448": ({}, (448, 448)),
    "224x336": ({}, (224, 336)),
}


def published_config(case: str = "gcc_yfcc") -> ConfigDict:
    """`config.model` of a case, in float32."""
    config = base.get_config().model
    config.dtype = "float32"
    for field, value in CASES[case][0].items():
        (config if field in config else config.image)[field] = value
    return config


def small_config(case: str = "gcc_yfcc") -> ConfigDict:
    """The same structure with a 7th of the side, few channels and groups, and one block a stage."""
    config, published = tiny.get_config().model, published_config(case)
    config.text.update(vocab_size=512, end_of_text_id=511)
    config.share_logit_scale = published.share_logit_scale
    image = published.image
    config.image.update(
        image_size=image.image_size // 7,
        patch_size=image.patch_size // 4,
        depths=(1,) * len(image.depths),
        num_group_tokens=tuple(n // 4 for n in image.num_group_tokens),
        num_output_groups=tuple(n // 4 for n in image.num_output_groups),
    )
    return config


def random_pretrained(config: ConfigDict, seed: int = 0) -> Pretrained:
    """A model whose every weight, bias and statistic is random and of the trained size."""
    flat = {
        name: _random(seed, name, shape)
        for name, shape in expected_shapes(build_model(config)).items()
    }
    return Pretrained(config, unflatten(flat), CLIP)


def _random(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    # The streams of RandomState are the same in every version of NumPy: goldens depend on them.
    rng = np.random.RandomState(zlib.crc32(f"{seed}/{name}".encode()))
    leaf = name.rpartition("/")[2]
    if leaf == "var":
        values = rng.uniform(0.5, 2, shape)
    elif "logit_scale" in leaf:
        values = rng.uniform(2, 3)
    else:
        centre = 1.0 if leaf == "scale" else 0.0
        deviation = math.prod(shape[:-1]) ** -0.5 if leaf == "kernel" else 0.3
        values = rng.normal(centre, deviation, shape)
    return np.asarray(values, np.float32)


def small_size(case: str) -> tuple[int, int]:
    """Height and width of the images for `small_config`."""
    height, width = CASES[case][1]
    return height // 7, width // 7


def images_and_tokens(config: ConfigDict, size: tuple[int, int], batch_size: int, seed: int = 0):
    """Images like normalised ones, and texts of random tokens and lengths."""
    rng = np.random.RandomState(1000 + seed)
    # Patches of colour under noise: pure noise gives all images almost the same features, and
    # BatchNorm would blow their rounding errors up.
    colours = rng.normal(size=(batch_size, 4, 4, 3))
    patches = np.kron(colours, np.ones((1, size[0] // 4, size[1] // 4, 1)))
    images = (patches + 0.5 * rng.normal(size=patches.shape)).astype(np.float32)
    text = config.text
    tokens = rng.randint(1, text.end_of_text_id, (batch_size, text.context_length))
    ends = rng.randint(2, text.context_length, batch_size)
    positions = np.arange(text.context_length)
    tokens[positions == ends[:, None]] = text.end_of_text_id
    tokens[positions > ends[:, None]] = 0
    return images, tokens.astype(np.int32)


def flat(pretrained: Pretrained) -> dict[str, np.ndarray]:
    """The model's variables by path."""
    return to_host(pretrained.variables)


def training_config(config: ConfigDict) -> ConfigDict:
    """Without noise, so that a training step is the same in both frameworks."""
    config.image.update(assignment="hard", drop_path_rate=0.0)
    return config
