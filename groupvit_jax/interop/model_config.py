"""Builds model configurations from module defaults."""

import dataclasses
from typing import Any

from flax import linen as nn
from ml_collections import ConfigDict

from groupvit_jax.models.blocks import Execution
from groupvit_jax.models.image_encoder import ImageEncoder
from groupvit_jax.models.text_encoder import TextEncoder
from groupvit_jax.models.two_tower import Projector, TwoTower


def make_model_config(image: dict, text: dict, projector: dict) -> ConfigDict:
    """Build a `config.model` from the differences to the published model.

    Args:
      image: fields of `ImageEncoder`.
      text: fields of `TextEncoder`.
      projector: `hidden_dim` and `output_dim`.

    Returns:
      The configuration, in float32.
    """
    towers = _defaults(TwoTower)
    default_projector = _defaults(Projector)
    config = {
        "image": _defaults(ImageEncoder) | image,
        "text": {"kind": "clip"} | _defaults(TextEncoder) | text,
        "projector": {
            "hidden_dim": default_projector["hidden_dim"],
            "output_dim": default_projector["out_dim"],
        }
        | projector,
        "initial_temperature": towers["initial_temperature"],
        "share_logit_scale": towers["share_logit_scale"],
        "initial_logit_bias": towers["initial_logit_bias"],
        "kernels": "auto",
        "scan_layers": Execution().scan_layers,
        "remat": Execution().remat,
        "fused_attention": False,
        "dtype": "float32",
    }
    return ConfigDict(config)


def _defaults(module: type[nn.Module]) -> dict[str, Any]:
    return {
        field.name: field.default
        for field in dataclasses.fields(module)
        if field.name not in ("parent", "name", "dtype", "execution")
        and field.default is not dataclasses.MISSING
    }
