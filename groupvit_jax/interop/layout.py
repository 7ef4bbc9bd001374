"""Maps our variables to PyTorch checkpoints: names, axis order, fused projections."""

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from groupvit_jax.models import TwoTower
from groupvit_jax.models.segmentation import SegmentationModel
from groupvit_jax.typing import PyTree

# Variables by path, e.g. "params/image_encoder/norm/scale".
FlatVariables = dict[str, np.ndarray]
# Foreign names of one of our arrays; several if ours is their concatenation.
Names = Callable[[str], tuple[str, ...]]

MULTI_LABEL_SCALE = "params/multi_label_logit_scale"
# Buffers without model state.
_IGNORED = r"(num_batches_tracked|position_ids)$"
_LEAF_NAMES = {
    "kernel": "weight",
    "embedding": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def flatten(variables: PyTree) -> dict[str, Any]:
    """Return variables by "/"-joined path."""
    return flatten_dict(variables, sep="/")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Invert `flatten`."""
    return unflatten_dict(dict(flat), sep="/")


def expected_shapes(model: TwoTower | SegmentationModel) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the model's variables by path, without computing the variables."""
    return dict(_shapes(model))


@functools.cache  # tracing takes a second or two
def _shapes(model: TwoTower | SegmentationModel) -> dict[str, tuple[int, ...]]:
    size = model.image_encoder.image_size
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    text = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    texts = (text, text) if isinstance(model, TwoTower) else ()
    variables = jax.eval_shape(model.init, jax.random.key(0), images, *texts)
    return {name: leaf.shape for name, leaf in flatten(variables).items()}


def renamer(rules: Sequence[tuple[str, str]]) -> Callable[[str], str]:
    """Build a function from our paths to dotted names of a PyTorch state dict.

    Args:
      rules: (pattern, replacement) pairs of `re.sub`, applied in order to the path of the module;
        the name of the leaf follows by convention.
    """

    def rename(name: str) -> str:
        module, _, leaf = name.partition("/")[2].rpartition("/")
        path = f"{module}/{_LEAF_NAMES[leaf]}" if leaf in _LEAF_NAMES else f"{module}/{leaf}"
        for pattern, replacement in rules:
            path = re.sub(pattern, replacement, path)
        return path.strip("/").replace("/", ".")

    return rename


def to_torch(name: str, array: np.ndarray) -> np.ndarray:
    """Transpose to PyTorch's axis order: linear [out, in], convolutions [out, in, h, w]."""
    if not name.endswith("/kernel"):
        return array
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def from_torch(name: str, array: np.ndarray) -> np.ndarray:
    """Invert `to_torch`."""
    if not name.endswith("/kernel"):
        return array
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def export_arrays(flat: Mapping[str, np.ndarray], names: Names) -> FlatVariables:
    """Rename and transpose our variables for PyTorch; bits are preserved."""
    exported: FlatVariables = {}
    for name, array in flat.items():
        targets = names(name)
        array = to_torch(name, np.asarray(array))
        # Queries, keys and values lie one below the other along PyTorch's first axis, the outputs.
        parts = np.split(array, len(targets)) if targets[1:] else [array]
        exported.update(zip(targets, parts, strict=True))
    return exported


def import_arrays(
    source: Mapping[str, np.ndarray],
    model: TwoTower,
    names: Names,
    path: Path | str,
    *,
    allow_extra: bool = False,
) -> tuple[FlatVariables, list[str]]:
    """Find a model's variables in a PyTorch state dict.

    Args:
      source: arrays by foreign name.
      model: both towers.
      names: maps our path to foreign names.
      path: path of the file, for error messages.
      allow_extra: report superfluous tensors as notes instead of raising.

    Returns:
      The variables by path, and notes on missing and superfluous tensors.

    Raises:
      ValueError: a tensor, named in the message, is missing, superfluous or has another shape.
    """
    shapes, notes = expected_shapes(model), []
    # Hugging Face's models, and those trained without the multi-label loss, lack this parameter.
    lacks_scale = MULTI_LABEL_SCALE in shapes and names(MULTI_LABEL_SCALE)[0] not in source
    if lacks_scale:
        del shapes[MULTI_LABEL_SCALE]
        notes.append(f"{MULTI_LABEL_SCALE}: not in {path}, set to logit_scale")
    expected = {part for name in shapes for part in names(name)}
    if allow_extra:
        notes += [f"{path}: {name} is not used" for name in _extra_names(source, expected)]
        source = {name: array for name, array in source.items() if name in expected}
    check_names(source, expected, path)
    flat = gather_arrays(source, shapes, names, path)
    if lacks_scale:
        flat[MULTI_LABEL_SCALE] = flat["params/logit_scale"].copy()
    return flat, notes


def gather_arrays(
    source: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    names: Names,
    path: Path | str,
) -> FlatVariables:
    """Extract variables from a PyTorch state dict, which may contain others.

    Args:
      source: arrays by foreign name.
      shapes: shapes of the variables by our path.
      names: maps our path to foreign names.
      path: path of the file, for error messages.

    Raises:
      ValueError: a tensor, named in the message, is missing or has another shape.
    """
    wanted = {name: names(name) for name in shapes}
    expected = {part for parts in wanted.values() for part in parts}
    check_names(expected & set(source), expected, path)
    flat = {}
    for name, parts in wanted.items():
        # A broadcast zero has the right shape and uses no memory.
        template = to_torch(name, np.broadcast_to(np.float32(0), shapes[name]))
        pieces = np.split(template, len(parts)) if parts[1:] else [template]
        pairs = zip(parts, pieces, strict=True)
        arrays = [_matching(source, part, piece.shape, path) for part, piece in pairs]
        joined = np.concatenate(arrays) if arrays[1:] else arrays[0]
        flat[name] = np.asarray(from_torch(name, joined), np.float32, order="C")
    return flat


def check_names(found: Iterable[str], expected: Iterable[str], path: Path | str) -> None:
    """Raise a ValueError that names the first missing or superfluous tensor."""
    found, expected = set(found), set(expected)
    missing, extra = sorted(expected - found), _extra_names(found, expected)
    if missing:
        raise ValueError(f"{path}: tensor {missing[0]!r} is missing ({len(missing)} in all)")
    if extra:
        raise ValueError(
            f"{path}: tensor {extra[0]!r} isn't part of the model ({len(extra)} in all)"
        )


def _extra_names(found: Iterable[str], expected: set[str]) -> list[str]:
    return sorted(n for n in found if n not in expected and not re.search(_IGNORED, n))


def check_variables(
    flat: Mapping[str, np.ndarray], model: TwoTower | SegmentationModel, path: Path | str
) -> None:
    """Raise a ValueError that names the first variable that isn't the model's."""
    shapes = expected_shapes(model)
    check_names(flat, shapes, path)
    for name, shape in shapes.items():
        if flat[name].shape != shape:
            found = flat[name].shape
            raise ValueError(f"{path}: tensor {name!r} has shape {found}, expected {shape}")


def _matching(
    source: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...], path: Path | str
) -> np.ndarray:
    array = source[name]
    # A 1x1 convolution is a linear layer with trailing axes of one.
    bare = array.shape[: len(shape)] if set(array.shape[len(shape) :]) <= {1} else array.shape
    if bare != shape:
        raise ValueError(f"{path}: tensor {name!r} has shape {array.shape}, expected {shape}")
    return array.reshape(shape)
