"""Imports and exports `.pth` checkpoints of the original GroupViT, without PyTorch."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from groupvit_jax.interop.huggingface_config import check_plain_options, check_text_tower
from groupvit_jax.interop.layout import (
    export_arrays,
    import_arrays,
    renamer,
    unflatten,
)
from groupvit_jax.interop.model_config import make_model_config
from groupvit_jax.interop.pretrained import (
    Pretrained,
    described_tokenizer,
    to_description,
    to_host,
    with_learned_positions,
)
from groupvit_jax.interop.torch_file import describe_tensors
from groupvit_jax.interop.torch_writer import write_torch_file
from groupvit_jax.models import build_model
from groupvit_jax.runs.configuration import config_from_dict

# Entry with our configuration as JSON, beside the state dict.
_OUR_ENTRY = "groupvit_jax"
_HEAD_WIDTH = 64
# A tensor that every such file has.
ANCHOR = "img_encoder.patch_embed.proj.weight"

# In order: later rules match what earlier ones have written, such as `resblocks`.
_rename = renamer(
    [
        (r"^image_encoder/position_embedding$", "img_encoder/pos_embed"),
        (r"^image_encoder/", "img_encoder/"),
        (r"/stages_(\d+)/", r"/layers/\1/"),
        (r"/group_projector/norm/", "/group_projector/0/"),
        (r"/group_projector/mlp/", "/group_projector/1/"),
        (r"^text_encoder/position_embedding$", "text_encoder/positional_embedding"),
        (r"^text_encoder/norm/", "text_encoder/ln_final/"),
        (r"^text_encoder/blocks_", "text_encoder/transformer/resblocks/"),
        (r"/blocks_(\d+)/", r"/blocks/\1/"),
        (r"(/resblocks/\d+)/norm([12])/", r"\1/ln_\2/"),
        (r"(/resblocks/\d+/attn)/qkv/", r"\1/in_proj_"),
        (r"(/resblocks/\d+/attn)/proj/", r"\1/out_proj/"),
        (r"(/resblocks/\d+/mlp)/fc1/", r"\1/c_fc/"),
        (r"(/resblocks/\d+/mlp)/fc2/", r"\1/c_proj/"),
        (r"^image_projector/", "img_projector/"),
        (r"_projector/linear_hidden/", "_projector/linear_hidden/0/"),
        (r"_projector/norm/", "_projector/linear_hidden/1/"),
    ]
)


def names(name: str) -> tuple[str, ...]:
    """Return the original name of one of our arrays."""
    return (_rename(name),)


def from_tensors(
    tensors: Mapping[str, np.ndarray],
    content: Mapping[str, Any],
    path: Path,
    model_config: ConfigDict | None = None,
) -> Pretrained:
    """Return the model of tensors by the original names.

    Args:
      tensors: by name.
      content: of the file, which may hold our configuration.
      path: of the file, for messages.
      model_config: provides what tensor shapes don't show, such as the number of heads; without it,
        heads are 64 channels wide and the rest is as in the published models.

    Raises:
      ValueError: a tensor, named in the message, doesn't fit.
    """
    entry = content.get(_OUR_ENTRY)
    stored = json.loads(entry) if isinstance(entry, str) else {}
    if "model" in stored:
        model_config = config_from_dict(stored["model"])
    else:
        known = (model_config or ConfigDict()).to_dict()
        model_config = infer_config(tensors, path, known)
    # Not all published files were available for testing, so superfluous tensors are not an error.
    flat, notes = import_arrays(tensors, build_model(model_config), names, path, allow_extra=True)
    tokenizer = described_tokenizer(stored, path)
    return Pretrained(model_config, unflatten(flat), tokenizer, tuple(notes))


def write_original(path: Path, pretrained: Pretrained) -> None:
    """Write a checkpoint for the original code and `torch.load(weights_only=True)`.

    Raises:
      ValueError: the original format doesn't support the model; the message names the field.
    """
    pretrained.check_two_towers("a .pth of the original")
    model = build_model(pretrained.model_config)
    check_text_tower(model, "a .pth of the original")
    check_plain_options(model.image_encoder, "a .pth of the original")
    pretrained = with_learned_positions(pretrained)
    factors = pretrained.model_config.image.width_factors
    if set(factors) - {1}:
        raise ValueError(
            f"model.image.width_factors: {factors}, but a .pth of the original has equal widths"
        )
    arrays = export_arrays(to_host(pretrained.variables), names)
    tensors = {name: _as_convolution(name, array) for name, array in arrays.items()}
    # PyTorch's BatchNorm counts its batches, for which there is nothing here.
    for projector in ("img_projector", "text_projector"):
        tensors[f"{projector}.linear_hidden.1.num_batches_tracked"] = np.zeros((), np.int64)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_torch_file(path, tensors, {_OUR_ENTRY: json.dumps(to_description(pretrained))})


def _as_convolution(name: str, array: np.ndarray) -> np.ndarray:
    """Add the axes of a 1x1 convolution, the original's form of the projectors' linear layers."""
    return array[..., None] if "_projector.linear" in name and array.ndim == 2 else array


def infer_config(
    tensors: Mapping[str, np.ndarray], path: Path, known: Mapping[str, Any]
) -> ConfigDict:
    """Infer the configuration from tensor shapes, and take the rest from `known`."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise ValueError(
                f"{path}: tensor {name!r} is missing, so not a GroupViT; found "
                f"{describe_tensors(tensors)}"
            )
        return tensors[name].shape

    def count(prefix: str) -> int:
        pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
        return len({m[1] for name in tensors if (m := pattern.match(name))})

    layers = "img_encoder.layers."
    # PyTorch's convolutions are [out, in, height, width].
    width, _, patch_size, _ = shape("img_encoder.patch_embed.proj.weight")
    stages = range(count(layers))
    # A stage without grouping has neither group tokens nor a block that assigns.
    tokens = [tensors.get(f"{layers}{i}.group_token", np.zeros((1, 0))).shape[1] for i in stages]
    groups = [shape(f"{layers}{i}.downsample.mlp_inter.fc2.weight")[0] for i in stages if tokens[i]]
    hidden = shape(f"{layers}0.blocks.0.mlp.fc1.weight")[0]
    image = {
        # Position embeddings are [1, L, C], of a square grid of L patches.
        "image_size": math.isqrt(shape("img_encoder.pos_embed")[1]) * patch_size,
        "patch_size": patch_size,
        "width": width,
        "mlp_ratio": hidden / width,
        "depths": tuple(count(f"{layers}{i}.blocks.") for i in stages),
        "num_group_tokens": tuple(tokens),
        "num_output_groups": tuple(groups),
    }
    vocab_size, text_width = shape("text_encoder.token_embedding.weight")
    text_hidden = shape("text_encoder.transformer.resblocks.0.mlp.c_fc.weight")[0]
    text = {
        "vocab_size": vocab_size,
        "context_length": shape("text_encoder.positional_embedding")[0],
        "width": text_width,
        "num_layers": count("text_encoder.transformer.resblocks."),
        "mlp_ratio": text_hidden / text_width,
        # The last entry of CLIP's vocabulary.
        "end_of_text_id": vocab_size - 1,
    }
    hidden_dim, output_dim = (
        shape(f"img_projector.{name}.weight")[0] for name in ("linear_hidden.0", "linear_out")
    )
    projector = {"hidden_dim": hidden_dim, "output_dim": output_dim}
    if known:
        return make_model_config({**known["image"], **image}, {**known["text"], **text}, projector)
    image["num_heads"] = _num_heads(width, "img_encoder", path)
    text["num_heads"] = _num_heads(text_width, "text_encoder", path)
    return make_model_config(image, text, projector)


def _num_heads(width: int, tower: str, path: Path) -> int:
    if width % _HEAD_WIDTH:
        raise ValueError(
            f"{path}: {tower} is {width} wide, no multiple of {_HEAD_WIDTH}, so its number of "
            "heads is unknown; give the model's configuration (--config)"
        )
    return width // _HEAD_WIDTH
