"""Imports and exports Hugging Face directories of `GroupViTModel`.

Names and configuration fields are those of `transformers.GroupViTModel`.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from groupvit_jax.data.text import vocabulary
from groupvit_jax.interop import hub_files
from groupvit_jax.interop.hub_files import Origin
from groupvit_jax.interop.huggingface_config import (
    from_model_config,
    processor_config,
    to_model_config,
)
from groupvit_jax.interop.layout import (
    MULTI_LABEL_SCALE,
    export_arrays,
    import_arrays,
    renamer,
    unflatten,
)
from groupvit_jax.interop.original import infer_config
from groupvit_jax.interop.pretrained import (
    Pretrained,
    described_tokenizer,
    to_description,
    to_host,
    with_learned_positions,
)
from groupvit_jax.interop.tensor_file import (
    read_safetensors,
    read_sharded_safetensors,
    write_safetensors,
)
from groupvit_jax.interop.torch_file import read_torch_file, without_prefix
from groupvit_jax.models import build_model
from groupvit_jax.runs.configuration import config_from_dict
from groupvit_jax.runs.files import read_json, write_json

# Holds our configuration inside Hugging Face's, whose readers keep but ignore it.
_OUR_SECTION = "groupvit_jax"

_rename = renamer(
    [
        (r"^image_encoder/", "vision_model/"),
        (r"^text_encoder/", "text_model/"),
        (r"/patch_embed/proj/", "/embeddings/patch_embeddings/projection/"),
        (r"/patch_embed/norm/", "/embeddings/layernorm/"),
        (r"/token_embedding/", "/embeddings/token_embedding/"),
        (r"^vision_model/position_embedding$", "vision_model/embeddings/position_embeddings"),
        (r"^text_model/position_embedding$", "text_model/embeddings/position_embedding/weight"),
        (r"^vision_model/norm/", "vision_model/layernorm/"),
        (r"^text_model/norm/", "text_model/final_layer_norm/"),
        (r"/stages_", "/encoder/stages/"),
        (r"^text_model/blocks_", "text_model/encoder/layers/"),
        (r"/blocks_(\d+)/", r"/layers/\1/"),
        (r"/layers/(\d+)/norm([12])/", r"/layers/\1/layer_norm\2/"),
        (r"/layers/(\d+)/attn/", r"/layers/\1/self_attn/"),
        (r"attn/proj/", "attn/out_proj/"),
        (r"/group_projector/norm/", "/group_projector/0/"),
        (r"/group_projector/mlp/", "/group_projector/1/"),
        (r"^image_projector/", "visual_projection/"),
        (r"^text_projector/", "text_projection/"),
        (r"projection/linear_hidden/", "projection/0/"),
        (r"projection/norm/", "projection/1/"),
        (r"projection/linear_out/", "projection/3/"),
    ]
)


def names(name: str) -> tuple[str, ...]:
    """Return Hugging Face's names for one of our arrays; queries, keys and values are separate."""
    foreign = _rename(name)
    if ".self_attn.qkv." not in foreign:
        return (foreign,)
    return tuple(foreign.replace(".qkv.", f".{part}_proj.") for part in "qkv")


# Possible tensor files; the first that exists is read.
_READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    "model.safetensors": read_safetensors,
    "model.safetensors.index.json": read_sharded_safetensors,
    "pytorch_model.bin": lambda path: without_prefix(read_torch_file(path)[0], (ANCHOR,)),
    "pytorch_model.bin.index.json": lambda path: _read_sharded_bin(path),
}
# A tensor that every such model has.
ANCHOR = "vision_model.embeddings.patch_embeddings.projection.weight"
# To the original's names, of the tensors that tell a model's configuration.
_TELLING = [
    (r"^vision_model\.embeddings\.patch_embeddings\.projection\.", "img_encoder.patch_embed.proj."),
    (r"^vision_model\.embeddings\.position_embeddings$", "img_encoder.pos_embed"),
    (r"^vision_model\.encoder\.stages\.(\d+)\.layers\.", r"img_encoder.layers.\1.blocks."),
    (r"^vision_model\.encoder\.stages\.", "img_encoder.layers."),
    (r"^text_model\.embeddings\.token_embedding\.", "text_encoder.token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "text_encoder.positional_embedding"),
    (r"^text_model\.encoder\.layers\.(\d+)\.mlp\.fc1\.", r"text_encoder.layers.\1.mlp.c_fc."),
    (r"^text_model\.encoder\.layers\.", "text_encoder.transformer.resblocks."),
    (r"^text_encoder\.layers\.", "text_encoder.transformer.resblocks."),
    (r"^visual_projection\.0\.", "img_projector.linear_hidden.0."),
    (r"^visual_projection\.3\.", "img_projector.linear_out."),
]


def read_huggingface(directory: Path) -> Pretrained:
    """Read a directory of `GroupViTModel`, from (sharded) safetensors or a PyTorch file.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a field or tensor doesn't fit; the message names it.
    """
    config = directory / "config.json"
    _read_config(config)  # whatever is wrong with it comes before the weights
    path, tensors = read_tensors(directory)
    return from_tensors(tensors, path, config)


def from_tensors(
    tensors: dict[str, np.ndarray],
    path: Path,
    config_file: Path,
    known: ConfigDict | None = None,
) -> Pretrained:
    """Return the model of tensors by Hugging Face's names.

    Args:
      tensors: by name.
      path: of the file, for messages.
      config_file: Hugging Face's configuration; without it, shapes tell the model as in a `.pth`.
      known: what shapes don't show, where there is no such file.

    Raises:
      ValueError: a field or tensor doesn't fit; the message names it.
    """
    if not config_file.is_file():
        renamed = {_original_name(name): tensor for name, tensor in tensors.items()}
        model_config = infer_config(renamed, path, (known or ConfigDict()).to_dict())
        flat, notes = import_arrays(tensors, build_model(model_config), names, path)
        return Pretrained(model_config, unflatten(flat), vocabulary.CLIP, tuple(notes))
    model_config, ours = _read_config(config_file)
    own = ours.get("tensors", {})
    tensors |= {name: np.array(value, np.float32) for name, value in own.items()}
    flat, notes = import_arrays(tensors, build_model(model_config), names, path)
    tokenizer = described_tokenizer(ours, config_file)
    return Pretrained(model_config, unflatten(flat), tokenizer, tuple(notes))


def _read_config(path: Path) -> tuple[ConfigDict, dict[str, Any]]:
    """Return the configuration of a model, and our section of the file."""
    config = read_json(path)
    ours = config.get(_OUR_SECTION, {})
    if "model" in ours:
        return config_from_dict(ours["model"]), ours
    return to_model_config(config, path), ours


def _original_name(name: str) -> str:
    for pattern, new in _TELLING:
        name = re.sub(pattern, new, name)
    return name


def _read_sharded_bin(index: Path) -> dict[str, np.ndarray]:
    """Read the tensors of every shard that an index names; see `read_tensors`."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: no 'weight_map', expected the file of each tensor")
    files = sorted({str(file) for file in weight_map.values()})
    for file in files:  # names, not paths that could lead elsewhere
        if not re.fullmatch(r"[\w-][\w.-]*\.bin", file):
            raise ValueError(f"{index}: {file!r} found, expected the name of a .bin beside it")
    tensors = {n: t for file in files for n, t in read_torch_file(index.parent / file)[0].items()}
    if missing := sorted(set(weight_map) - set(tensors)):
        raise ValueError(f"{index}: {weight_map[missing[0]]} lacks the tensor {missing[0]!r}")
    return tensors


def read_tensors(directory: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """Read every tensor of a directory; also returns the file or index that was read.

    Raises:
      FileNotFoundError: there is no file of tensors.
      ValueError: a file is damaged.
    """
    for file, read in _READERS.items():
        if (directory / file).exists():
            return directory / file, read(directory / file)
    raise FileNotFoundError(f"{directory}: none of {', '.join(_READERS)}")


def write_huggingface(
    directory: Path, pretrained: Pretrained, origin: Origin | None = None, licence: str = ""
) -> None:
    """Write a directory that `GroupViTModel`, `AutoImageProcessor` and `AutoTokenizer` load.

    Args:
      directory: output folder; created if missing.
      pretrained: the model.
      origin: of the weights, for the model card; None if it is not known.
      licence: of the weights, for the model card; "" if it is not stated.

    Raises:
      ValueError: `GroupViTModel` doesn't support the model; the message names the field.
    """
    pretrained.check_two_towers("a Hugging Face directory")
    pretrained = with_learned_positions(pretrained)
    config = from_model_config(build_model(pretrained.model_config))
    directory.mkdir(parents=True, exist_ok=True)
    flat = to_host(pretrained.variables)
    tensors = export_arrays(flat, names)
    # GroupViTModel has no second scale. A float32 survives a round trip through JSON exactly.
    own = {n: float(tensors.pop(n)) for n in names(MULTI_LABEL_SCALE) if n in tensors}
    config[_OUR_SECTION] = {**to_description(pretrained, directory), "tensors": own}
    for projection in ("visual_projection", "text_projection"):
        # A buffer of PyTorch's BatchNorm, which would be reported as missing.
        tensors[f"{projection}.1.num_batches_tracked"] = np.zeros((), np.int64)
    write_safetensors(directory / "model.safetensors", tensors, {"format": "pt"})
    write_json(directory / "config.json", config)
    processor = processor_config(pretrained.model_config.image.image_size)
    if pretrained.tokenizer.name != "clip":
        del processor["processor_class"]  # which insists on CLIP's tokenizer
    write_json(directory / "preprocessor_config.json", processor)
    length = pretrained.model_config.text.context_length
    has_tokenizer = hub_files.write_tokenizer(directory, pretrained.tokenizer, length)
    hub_files.write_card(directory, origin, licence, has_tokenizer=has_tokenizer)
