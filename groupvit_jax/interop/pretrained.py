"""The in-memory form of a model, common to all checkpoint formats."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from groupvit_jax.data.text import vocabulary
from groupvit_jax.data.text.vocabulary import Vocabulary
from groupvit_jax.interop.layout import FlatVariables, flatten
from groupvit_jax.models import TwoTower, build_model
from groupvit_jax.models.position_embedding import (
    resize_position_embedding,
    sincos_position_embedding,
)
from groupvit_jax.models.segmentation import SegmentationModel, with_segment_head
from groupvit_jax.runs.configuration import changed
from groupvit_jax.typing import Float, PyTree


class Pretrained(NamedTuple):
    """A model with its weights.

    Attributes:
      model_config: the model's `config.model`.
      variables: {"params": ..., "batch_stats": ...} of float32 arrays on the host.
      tokenizer: vocabulary of its texts, for `data.text.tokenizers.make_tokenizer`.
      notes: what the file lacked and the value used instead.
      class_names: classes of a segment head; () for a model with both towers.
    """

    model_config: ConfigDict
    variables: PyTree
    tokenizer: Vocabulary
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()

    def build_model(self) -> TwoTower | SegmentationModel:
        """Build both towers, or the image tower with its segment head."""
        model = build_model(self.model_config)
        return with_segment_head(model, len(self.class_names)) if self.class_names else model

    def check_finite(self) -> None:
        """Raise ValueError if a weight is NaN or infinite: every figure would be one, too."""
        for name, leaf in to_host(self.variables).items():
            if bad := int(leaf.size - np.isfinite(leaf).sum()):
                raise ValueError(
                    f"{name}: {bad} of {leaf.size} weights NaN or infinite found, expected "
                    "numbers: the training diverged; use an earlier step"
                )

    def check_two_towers(self, wanted_by: str) -> None:
        """Raise ValueError if there is a segment head instead of a text tower."""
        if self.class_names:
            raise ValueError(
                f"a segment head of {len(self.class_names)} classes found, but {wanted_by} needs a "
                "model with a text tower; export as safetensors, stablehlo or onnx"
            )


def to_host(variables: PyTree) -> FlatVariables:
    """Copy variables to the host."""
    return {name: np.asarray(jax.device_get(leaf)) for name, leaf in flatten(variables).items()}


def to_description(pretrained: Pretrained, directory: Path | None = None) -> dict[str, Any]:
    """Return configuration and tokenizer as plain values.

    Args:
      pretrained: the model.
      directory: folder for a vocabulary file; None embeds the vocabulary in the values.
    """
    tokenizer = pretrained.tokenizer
    described = vocabulary.to_json(tokenizer)
    if directory:
        described.pop("content", None)
        described["path"] = vocabulary.FILE_NAMES[tokenizer.name]
        if described["path"]:
            (directory / described["path"]).write_bytes(tokenizer.content)
    names = {"class_names": list(pretrained.class_names)} if pretrained.class_names else {}
    return {"model": pretrained.model_config.to_dict(), "tokenizer": described, **names}


def described_tokenizer(description: dict[str, Any], origin: Path) -> Vocabulary:
    """Return the tokenizer of a description read from the file `origin`; CLIP's by default.

    Raises:
      FileNotFoundError: its vocabulary file is missing.
      ValueError: the vocabulary differs from the one used in training.
    """
    if "tokenizer" not in description:
        return vocabulary.CLIP
    return vocabulary.from_json(description["tokenizer"], origin)


def with_image_size(pretrained: Pretrained, image_size: int) -> Pretrained:
    """Return the model for another training resolution, with learned positions resized.

    Raises:
      ValueError: the patch size doesn't divide the image size.
    """
    config = changed(pretrained.model_config, {"image.image_size": image_size})
    build_model(config)  # raises if the size doesn't fit
    if config.image.position_embedding != "learned":
        return pretrained._replace(model_config=config)
    table = pretrained.variables["params"]["image_encoder"]["position_embedding"]
    resized = resize_grid(table, image_size // config.image.patch_size)
    return _with_positions(pretrained._replace(model_config=config), resized)


def resize_grid(table: Float[np.ndarray, "1 L C"], side: int) -> Float[np.ndarray, "1 M C"]:
    """Resize position embeddings of a square grid to `side` x `side` patches."""
    old = math.isqrt(table.shape[1])
    return np.asarray(resize_position_embedding(jnp.asarray(table), (old, old), (side, side)))


def with_learned_positions(pretrained: Pretrained) -> Pretrained:
    """Return the model with sin-cos positions stored as learned ones, for other formats."""
    image = pretrained.model_config.image
    if image.position_embedding == "learned":
        return pretrained
    config = changed(pretrained.model_config, {"image.position_embedding": "learned"})
    side = image.image_size // image.patch_size
    table = sincos_position_embedding((side, side), image.width)
    return _with_positions(pretrained._replace(model_config=config), table)


def _with_positions(pretrained: Pretrained, table: np.ndarray) -> Pretrained:
    params = pretrained.variables["params"]
    # Copies on the way to the table: the caller's variables keep theirs.
    encoder = {**params["image_encoder"], "position_embedding": table}
    variables = {**pretrained.variables, "params": {**params, "image_encoder": encoder}}
    return pretrained._replace(variables=variables)
