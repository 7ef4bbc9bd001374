"""Plain ViTs in the files that people have, all translated to timm's names.

Such a file is a directory of `transformers` (ViT, ViT-MAE, DINOv2, CLIP, SigLIP) or of timm, or one
file: `.pth` or `.safetensors` with timm's names (DINO, MAE, DINOv2's own), or the `.npz` of the JAX
implementation (AugReg).
"""

import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from groupvit_jax.interop.huggingface import read_tensors
from groupvit_jax.interop.layout import renamer
from groupvit_jax.interop.tensor_file import read_safetensors
from groupvit_jax.interop.torch_file import read_torch_file
from groupvit_jax.models.preprocess import IMAGENET_MEAN, IMAGENET_STD
from groupvit_jax.runs.files import read_json

__all__ = ["PlainVit", "read_plain_vit"]

_HALF = (0.5, 0.5, 0.5)
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_HEAD_WIDTH = 64  # of every plain ViT in files that don't say their number of heads


class PlainVit(NamedTuple):
    """A plain ViT's tensors by timm's names, and what they don't tell.

    Attributes:
      path: the file of the tensors.
      tensors: "patch_embed.proj.weight" [C, 3, p, p], "pos_embed" [1, L, C],
        "blocks.0.attn.qkv.weight", ...; others, such as heads, keep their names.
      num_heads: attention heads.
      activation: one of `models.activations.ACTIVATIONS`.
      norm_eps: of the LayerNorms.
      mean: the mean of the pixels (0 to 1) that its images are normalised with.
      std: their standard deviation.
      source: says where the normalisation is from.
    """

    path: Path
    tensors: dict[str, np.ndarray]
    num_heads: int
    activation: str
    norm_eps: float
    mean: Sequence[float]
    std: Sequence[float]
    source: str


# By pattern, applied in order to `transformers`' names; queries, keys and values are joined later.
_VIT_RULES = (
    (r"^(vit|dinov2|dinov2_with_registers)\.", ""),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.(layernorm_before|norm1)\.", ".norm1."),
    (r"\.(layernorm_after|norm2)\.", ".norm2."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)
_CLIP_RULES = (
    (r"^vision_model\.", ""),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^encoder\.layers\.", "blocks."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.self_attn\.([qkv])_proj\.", r".attn.\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^post_layernorm\.", "norm."),
)
# model_type -> rules, LayerNorm's epsilon and activation where config.json has the defaults.
_KINDS: dict[str, tuple[Sequence[tuple[str, str]], float, str]] = {
    "vit": (_VIT_RULES, 1e-12, "gelu"),
    "vit_mae": (_VIT_RULES, 1e-12, "gelu"),
    "dinov2": (_VIT_RULES, 1e-6, "gelu"),
    "dinov2_with_registers": (_VIT_RULES, 1e-6, "gelu"),
    "clip": (_CLIP_RULES, 1e-5, "quick_gelu"),
    "clip_vision_model": (_CLIP_RULES, 1e-5, "quick_gelu"),
    "siglip": (_CLIP_RULES, 1e-6, "gelu_pytorch_tanh"),
    "siglip_vision_model": (_CLIP_RULES, 1e-6, "gelu_pytorch_tanh"),
}
_ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}
_NORMALISATION = {  # of those whose checkpoints all have the same
    "clip": (_CLIP_MEAN, _CLIP_STD),
    "siglip": (_HALF, _HALF),
    "vit_mae": (IMAGENET_MEAN, IMAGENET_STD),
    "dinov2": (IMAGENET_MEAN, IMAGENET_STD),
}


def read_plain_vit(path: Path) -> PlainVit:
    """Read a plain ViT from any of the formats.

    Raises:
      FileNotFoundError: there is no such file, or one is missing in the directory.
      ValueError: the file is damaged, or of another kind of model; the message names the field or
        tensor.
    """
    if path.is_dir():
        return _read_directory(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix == ".npz":
        return _described_by_shapes(path, _read_npz(path), _HALF, _HALF, "AugReg's")
    tensors = read_safetensors(path) if path.suffix == ".safetensors" else read_torch_file(path)[0]
    tensors = {re.sub(r"^(module\.)?(backbone\.)?", "", n): t for n, t in tensors.items()}
    source = "ImageNet's, as of DINO, DINOv2 and MAE; a directory with config.json says others"
    return _described_by_shapes(path, tensors, IMAGENET_MEAN, IMAGENET_STD, source)


def _described_by_shapes(
    path: Path, tensors: dict[str, np.ndarray], mean: Sequence[float], std: Sequence[float], of: str
) -> PlainVit:
    if "norm_pre.weight" in tensors:
        raise ValueError(
            f"{path}: a CLIP's norm_pre.weight found; expected transformers' directory of that "
            "CLIP, whose config.json names the activation"
        )
    if "patch_embed.proj.weight" not in tensors:
        raise ValueError(
            f"{path}: tensor 'patch_embed.proj.weight' is missing, expected a plain ViT by timm's "
            f"names; found {', '.join(sorted(tensors)[:3])}, ..."
        )
    heads = max(1, len(tensors["patch_embed.proj.weight"]) // _HEAD_WIDTH)
    return PlainVit(path, tensors, heads, "gelu", 1e-6, mean, std, of)


def _read_directory(directory: Path) -> PlainVit:
    where = directory / "config.json"
    config = read_json(where)
    if "architecture" in config:
        return _read_timm(directory, config)
    kind = config.get("model_type")
    if kind not in _KINDS:
        known = ", ".join(k for k in _KINDS if not k.endswith("_model"))
        raise ValueError(f"{where}: model_type {kind!r} found, expected one of {known}")
    rules, eps, activation = _KINDS[kind]
    vision = config.get("vision_config", config)
    eps = vision.get("layer_norm_eps", eps)
    activation = vision.get("hidden_act", activation)
    if activation not in _ACTIVATIONS:
        expected = " or ".join(map(repr, _ACTIVATIONS))
        raise ValueError(f"{where}: hidden_act {activation!r} found, expected {expected}")
    if vision.get("use_swiglu_ffn"):
        raise ValueError(f"{where}: use_swiglu_ffn is true, expected MLPs of two linear layers")
    heads = vision.get("num_attention_heads", 12)
    path, tensors = read_tensors(directory)
    mean, std, source = _normalisation(directory, kind)
    translated = _translate(tensors, rules)
    return PlainVit(path, translated, heads, _ACTIVATIONS[activation], eps, mean, std, source)


def _normalisation(directory: Path, kind: str) -> tuple[Sequence[float], Sequence[float], str]:
    path = directory / "preprocessor_config.json"
    if path.is_file():
        return *_colours(path, read_json(path), "image_mean", "image_std"), path.name
    name = kind.removesuffix("_vision_model").removesuffix("_with_registers")
    if name not in _NORMALISATION:
        # DINO has ImageNet's statistics, AugReg 0.5; nothing else in the directory tells.
        raise FileNotFoundError(f"{path}: no such file, it says how a 'vit' normalises its images")
    return *_NORMALISATION[name], f"that of all {name} models"


def _colours(
    path: Path, config: Mapping[str, Any], *fields: str
) -> tuple[Sequence[float], Sequence[float]]:
    """Return mean and standard deviation of the pixels from the two fields of a file."""
    colours = []
    for field in fields:
        values: Any = config.get(field)
        numbers = isinstance(values, list) and all(isinstance(v, int | float) for v in values)
        if not numbers or len(values) != 3 or (field.endswith("std") and min(values) <= 0):
            raise ValueError(f"{path}: {field} is {values!r}, expected three numbers, one a colour")
        colours.append(values)
    return colours[0], colours[1]


def _read_timm(directory: Path, config: Mapping[str, Any]) -> PlainVit:
    path, tensors = read_tensors(directory)
    described = {**config, **(config.get("pretrained_cfg") or {})}
    mean, std = _colours(directory / "config.json", described, "mean", "std")
    return _described_by_shapes(path, tensors, mean, std, "config.json's pretrained_cfg")


def _translate(
    tensors: Mapping[str, np.ndarray], rules: Sequence[tuple[str, str]]
) -> dict[str, np.ndarray]:
    """Return the tensors by timm's names, with one projection for queries, keys and values."""
    renamed: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if name.startswith(("text_model.", "decoder.")):
            continue  # the other half of a CLIP, a SigLIP or an MAE
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    if "pos_embed" in renamed and renamed["pos_embed"].ndim == 2:
        renamed["pos_embed"] = renamed["pos_embed"][None]
    for name in [n for n in renamed if re.search(r"\.attn\.(query|q)\.", n)]:
        parts = ("query", "key", "value") if ".query." in name else ("q", "k", "v")
        names = [name.replace(f".{parts[0]}.", f".{part}.") for part in parts]
        if all(n in renamed for n in names):
            joined = np.concatenate([renamed.pop(n) for n in names])
            renamed[name.replace(f".attn.{parts[0]}.", ".attn.qkv.")] = joined
    return renamed


_rename_npz = renamer(
    [
        (r"^embedding/", "patch_embed/proj/"),
        (r"^Transformer/posembed_input/pos_embedding$", "pos_embed"),
        (r"^Transformer/encoderblock_", "blocks/"),
        (r"^Transformer/encoder_norm/", "norm/"),
        (r"/LayerNorm_0/", "/norm1/"),
        (r"/LayerNorm_2/", "/norm2/"),
        (r"/MultiHeadDotProductAttention_1/out/", "/attn/proj/"),
        (r"/MultiHeadDotProductAttention_1/", "/attn/"),
        (r"/MlpBlock_3/Dense_0/", "/mlp/fc1/"),
        (r"/MlpBlock_3/Dense_1/", "/mlp/fc2/"),
    ]
)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    """Read the JAX implementation's arrays, transposed to PyTorch's axes."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a readable .npz of arrays: {error}") from error
    tensors = {}
    for name, array in arrays.items():
        if "/MultiHeadDotProductAttention_1/" in name:  # heads are an axis of their own there
            is_kernel, is_out = name.endswith("/kernel"), "/out/" in name
            if is_kernel and array.ndim == 3:
                width = array.shape[-1] if is_out else array.shape[0]
                array = array.reshape((-1, width) if is_out else (width, -1))
            elif not is_out:
                array = array.reshape(-1)
        if name.endswith("/kernel"):
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        tensors[_rename_npz(f"params/{name}")] = array
    return _translate(tensors, ())
