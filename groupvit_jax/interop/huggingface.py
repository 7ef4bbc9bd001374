"""Imports and exports Hugging Face directories of `GroupViTModel`.

Names and configuration fields are those of `transformers.GroupViTModel`.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

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
from groupvit_jax.interop.pretrained import (
    Pretrained,
    describe,
    described_tokenizer,
    to_host,
    with_learned_positions,
)
from groupvit_jax.interop.tensor_file import (
    read_safetensors,
    read_sharded_safetensors,
    write_safetensors,
)
from groupvit_jax.interop.torch_file import read_torch_file
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
    "pytorch_model.bin": lambda path: read_torch_file(path)[0],
}


def read_huggingface(directory: Path) -> Pretrained:
    """Read a directory of `GroupViTModel`, from (sharded) safetensors or a PyTorch file.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a field or tensor doesn't fit; the message names it.
    """
    config = read_json(directory / "config.json")
    ours = config.get(_OUR_SECTION, {})
    if "model" in ours:
        model_config = config_from_dict(ours["model"])
    else:
        model_config = to_model_config(config, directory / "config.json")
    path, tensors = read_tensors(directory)
    own = ours.get("tensors", {})
    tensors |= {name: np.array(value, np.float32) for name, value in own.items()}
    flat, notes = import_arrays(tensors, build_model(model_config), names, path)
    tokenizer = described_tokenizer(ours, directory / "config.json")
    return Pretrained(model_config, unflatten(flat), tokenizer, tuple(notes))


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
    config[_OUR_SECTION] = {**describe(pretrained, directory), "tensors": own}
    for projection in ("visual_projection", "text_projection"):
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
