"""Starts the image tower from a plain ViT (`config.image_init_from`).

The ViT's blocks become the blocks of all stages in order; group tokens, grouping blocks and
projectors stay as they are. What our blocks don't have is folded into what they have: LayerScale
into the projection before it, the normalisation of the pixels into the patch embedding. Class and
register tokens are left out, and learned positions are resized.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from groupvit_jax.foreign import naming
from groupvit_jax.interop.initialise import InitialisationReport, placed_like
from groupvit_jax.interop.layout import flatten, from_torch, unflatten
from groupvit_jax.interop.pretrained import resize_grid
from groupvit_jax.interop.towers.vit_files import PlainVit, read_plain_vit
from groupvit_jax.models.image_encoder import ImageEncoder
from groupvit_jax.models.preprocess import IMAGENET_MEAN, IMAGENET_STD
from groupvit_jax.models.two_tower import build_model
from groupvit_jax.typing import Params, PyTree

_PREFIX = "params/image_encoder/"
_MODULES = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
_MLP_RATIO_DIGITS = 6


def read_image_config(path: Path) -> dict[str, Any]:
    """Return the fields of `config.model.image` that a plain ViT requires.

    `depths` is left out: their sum has to be the number of blocks.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: it is no plain ViT; the message names the field or tensor.
    """
    return _required(read_plain_vit(path))


def _required(vit: PlainVit) -> dict[str, Any]:
    patch = _tensor(vit, "patch_embed.proj.weight", 4)
    hidden = _tensor(vit, "blocks.0.mlp.fc1.weight", 2)
    width, channels, side = patch.shape[:3]
    if channels != 3 or patch.shape[3] != side:
        raise ValueError(
            f"{vit.path}: tensor 'patch_embed.proj.weight' has shape {patch.shape}, expected "
            "square patches of 3 channels"
        )
    return {
        "patch_size": side,
        "width": width,
        "num_heads": vit.num_heads,
        "mlp_ratio": round(len(hidden) / width, _MLP_RATIO_DIGITS),
        "position_embedding": "learned",
        "patch_norm": False,
        "pre_norm": "norm_pre.weight" in vit.tensors,
        "activation": vit.activation,
        "norm_eps": vit.norm_eps,
    }


def _tensor(vit: PlainVit, name: str, ndim: int) -> np.ndarray:
    if name not in vit.tensors:
        raise ValueError(f"{vit.path}: tensor {name!r} is missing, expected a plain ViT")
    if vit.tensors[name].ndim != ndim:
        shape = vit.tensors[name].shape
        raise ValueError(f"{vit.path}: tensor {name!r} has shape {shape}, expected {ndim} axes")
    return vit.tensors[name]


def initialise_image_from(
    path: str | Path, params: Params, batch_stats: PyTree, model_config: ConfigDict
) -> tuple[Params, PyTree, InitialisationReport]:
    """Initialise the image tower's blocks from a plain ViT (`config.image_init_from`).

    Args, results and errors are those of `initialise_from`, but for the path: see `vit_files`.
    """
    with naming(path):
        vit = read_plain_vit(Path(path))
        encoder = build_model(model_config).image_encoder
        _check_fields(vit, encoder)
        own = flatten(dict(params["image_encoder"]))
        arrays, notes, used = _convert(vit, encoder)
        for name, array in arrays.items():
            if own[name].shape != array.shape:
                raise ValueError(
                    f"{vit.path}: {name} has shape {array.shape}, expected {own[name].shape}"
                )
    merged = {n: placed_like(leaf, arrays[n]) if n in arrays else leaf for n, leaf in own.items()}
    new = {f"{_PREFIX}{n}": "a plain ViT has none" for n in own if n not in arrays}
    loaded = tuple(f"{_PREFIX}{name}" for name in arrays)
    unused = tuple(sorted(set(vit.tensors) - used))
    report = InitialisationReport(loaded, {}, new, unused, notes)
    return {**params, "image_encoder": unflatten(merged)}, batch_stats, report


def _check_fields(vit: PlainVit, image: ImageEncoder) -> None:
    """Raise ValueError that names every field of `config.model.image` that has to be another."""
    wrong = {
        field: (getattr(image, field), value)
        for field, value in _required(vit).items()
        if getattr(image, field) != value
    }
    if abs(image.mlp_ratio - _required(vit)["mlp_ratio"]) * image.width < 0.5:
        wrong.pop("mlp_ratio", None)  # the ratio may have been rounded
    blocks = 1 + max(int(m[1]) for m in map(re.compile(r"blocks\.(\d+)\.").match, vit.tensors) if m)
    if sum(image.depths) != blocks:
        wrong["depths"] = image.depths, f"{blocks} blocks in all"
    if set(image.width_factors) - {1}:
        wrong["width_factors"] = image.width_factors, ()
    if wrong:
        lines = (f"config.model.image.{f} is {a!r}, expected {b!r}" for f, (a, b) in wrong.items())
        raise ValueError(f"{vit.path}: {'; '.join(lines)}")


def _convert(
    vit: PlainVit, image: ImageEncoder
) -> tuple[dict[str, np.ndarray], tuple[str, ...], set[str]]:
    """Return our arrays by path, notes on what was folded or resized, and the tensors used."""
    tensors = {name: np.asarray(t, np.float32) for name, t in vit.tensors.items()}
    notes, used = [], {"patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed"}
    arrays = _patch_embedding(tensors, vit.mean, vit.std)
    notes.append(f"folded the normalisation of pixels ({vit.source}) into patch_embed/proj")
    arrays["position_embedding"], note = _positions(vit, image)
    notes += note
    places = [(s, j) for s, depth in enumerate(image.depths) for j in range(depth)]
    for i, (stage, j) in enumerate(places):
        names = [f"blocks.{i}.{m}.{leaf}" for m in _MODULES for leaf in ("weight", "bias")]
        for scale, target in (("ls1.gamma", "attn.proj"), ("ls2.gamma", "mlp.fc2")):
            gamma = f"blocks.{i}.{scale}"
            if gamma in tensors:
                used.add(gamma)
                for leaf in ("weight", "bias"):
                    name = f"blocks.{i}.{target}.{leaf}"
                    # Outputs are the rows of PyTorch's [out, in], and the bias.
                    factor = tensors[gamma][:, None] if leaf == "weight" else tensors[gamma]
                    tensors[name] = _present(tensors, name, vit.path) * factor
                notes.append(f"folded {gamma} into blocks.{i}.{target}")
        used |= set(names)
        arrays |= _renamed(tensors, names, f"blocks.{i}.", f"stages_{stage}/blocks_{j}/", vit.path)
    for theirs, ours in (("norm", "norm"), *([("norm_pre", "pre_norm")] if image.pre_norm else ())):
        names = [f"{theirs}.weight", f"{theirs}.bias"]
        used |= set(names)
        arrays |= _renamed(tensors, names, f"{theirs}.", f"{ours}/", vit.path)
    # Whatever else there is in a block would change what it computes.
    if strange := sorted(n for n in vit.tensors if n.startswith("blocks.") and n not in used):
        raise ValueError(f"{vit.path}: tensor {strange[0]!r} isn't part of a plain ViT's block")
    return arrays, tuple(notes), used


def _present(tensors: Mapping[str, np.ndarray], name: str, path: Path) -> np.ndarray:
    if name not in tensors:
        raise ValueError(f"{path}: tensor {name!r} is missing")
    return tensors[name]


def _renamed(
    tensors: Mapping[str, np.ndarray], names: Sequence[str], old: str, new: str, path: Path
) -> dict[str, np.ndarray]:
    """Return the tensors as our arrays: "mlp.fc1.weight" below `old` is "mlp/fc1/kernel"."""
    arrays = {}
    for name in names:
        module, _, leaf = name.rpartition(".")
        own = {"bias": "bias", "weight": "scale" if "norm" in module else "kernel"}[leaf]
        target = new + f"{module}.".removeprefix(old).replace(".", "/") + own
        arrays[target] = from_torch(target, _present(tensors, name, path))
    return arrays


def _patch_embedding(
    tensors: Mapping[str, np.ndarray], mean: Sequence[float], std: Sequence[float]
) -> dict[str, np.ndarray]:
    """Return the embedding of images that are normalised with ImageNet's statistics.

    With pixels x = u s + m in ours (u) and x = v t + n in theirs: v = u s / t + (m - n) / t, so the
    kernel is scaled by s / t and (m - n) / t times the kernel is added to the bias.
    """
    kernel = tensors["patch_embed.proj.weight"].astype(np.float64)  # [C, 3, p, p]
    bias = tensors.get("patch_embed.proj.bias", np.zeros(len(kernel)))  # CLIP's has none
    m, s, n, t = (np.array(v, np.float64) for v in (IMAGENET_MEAN, IMAGENET_STD, mean, std))
    bias = bias + np.einsum("ochw,c->o", kernel, (m - n) / t)
    kernel = kernel * (s / t)[:, None, None]
    name = "patch_embed/proj/kernel"
    arrays = {name: from_torch(name, kernel), "patch_embed/proj/bias": bias}
    return {name: np.asarray(array, np.float32) for name, array in arrays.items()}


def _positions(vit: PlainVit, image: ImageEncoder) -> tuple[np.ndarray, list[str]]:
    """Return the positions of the patches, resized to our grid, and notes."""
    table = np.asarray(_tensor(vit, "pos_embed", 3), np.float32)
    length, side = table.shape[1], image.image_size // image.patch_size
    # A class token's position comes first, and a second token's in distilled models.
    extra = next((k for k in (0, 1, 2) if math.isqrt(length - k) ** 2 == length - k), None)
    if extra is None:
        raise ValueError(
            f"{vit.path}: tensor 'pos_embed' has {length} positions, expected those of a square of "
            "patches and of up to two tokens"
        )
    notes = [f"dropped {extra} position(s) of class tokens"] if extra else []
    table, old = table[:, extra:], math.isqrt(length - extra)
    if old != side:
        notes.append(f"resized pos_embed: {old}x{old} to {side}x{side} patches, bicubic")
        table = resize_grid(table, side)
    return table, notes
