"""What every kind of checkpoint is read into and written from."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from groupvit_jax.interop.layout import FlatVariables, flatten
from groupvit_jax.interop.model_config import config_from_dict, config_to_dict
from groupvit_jax.models.position import sincos_position_embedding
from groupvit_jax.typing import PyTree

CLIP_TOKENIZER = {"name": "clip", "path": ""}
_TOKENIZER_FILE = "tokenizer.model"
_POSITIONS = "params/image_encoder/position_embedding"


class Pretrained(NamedTuple):
    """A model with its weights.

    Attributes:
      model_config: `config.model` of the model.
      variables: {"params": ..., "batch_stats": ...} of float32 arrays on the host.
      tokenizer: `config.data.tokenizer` that its texts were encoded with.
      notes: what the file didn't hold and what was done about it.
    """

    model_config: ConfigDict
    variables: PyTree
    tokenizer: ConfigDict
    notes: tuple[str, ...] = ()


def to_host(variables: PyTree) -> FlatVariables:
    """Copies variables to the host, by path."""
    return {name: np.asarray(jax.device_get(leaf)) for name, leaf in flatten(variables).items()}


def describe(pretrained: Pretrained, directory: Path | None = None) -> dict[str, Any]:
    """The configurations as plain values.

    Args:
      pretrained: the model.
      directory: where the tokenizer's file is copied to, so that the folder is complete.
    """
    tokenizer = dict(pretrained.tokenizer)
    if tokenizer["path"] and directory:
        shutil.copyfile(tokenizer["path"], directory / _TOKENIZER_FILE)
        tokenizer["path"] = _TOKENIZER_FILE
    return {"model": config_to_dict(pretrained.model_config), "tokenizer": tokenizer}


def tokenizer_config(description: dict[str, Any], directory: Path) -> ConfigDict:
    """The tokenizer of a description that was read from `directory`."""
    tokenizer = ConfigDict(description.get("tokenizer", CLIP_TOKENIZER))
    if tokenizer.path:
        tokenizer.path = str(directory / tokenizer.path)
    return tokenizer


def with_learned_positions(pretrained: Pretrained) -> Pretrained:
    """The same model with sin-cos positions as if they were learned, for formats without them."""
    image = pretrained.model_config.image
    if image.position_embedding == "learned":
        return pretrained
    config = config_from_dict(config_to_dict(pretrained.model_config))
    config.image.position_embedding = "learned"
    side = image.image_size // image.patch_size
    table = sincos_position_embedding((side, side), image.width)
    params = pretrained.variables["params"]
    encoder = {**params["image_encoder"], "position_embedding": table}
    variables = {**pretrained.variables, "params": {**params, "image_encoder": encoder}}
    return pretrained._replace(model_config=config, variables=variables)
