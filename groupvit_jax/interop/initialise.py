"""Starts a training from weights of any kind, also of another resolution (`config.init_from`)."""

import math
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from groupvit_jax.interop.layout import flatten, unflatten
from groupvit_jax.interop.load import load_pretrained
from groupvit_jax.interop.pretrained import resize_grid
from groupvit_jax.models.two_tower import text_tower
from groupvit_jax.typing import Array, Params, PyTree

_IMAGE_POSITIONS = "params/image_encoder/position_embedding"
_TEXT_POSITIONS = "params/text_encoder/position_embedding"
# What changes the meaning of weights without changing their shapes.
_SAME_FIELDS = ("image.num_heads", "text.num_heads")
_TEXT_TOWER = "params/text_encoder/"


class InitialisationReport(NamedTuple):
    """Where each variable of a model came from.

    Attributes:
      loaded: taken as they are.
      resized: position embeddings fitted to another grid or context, and how.
      initialised: left at their initialisation, and why.
      unused: in the file, but not in the model.
      notes: what the file lacked and what was done about it.
    """

    loaded: tuple[str, ...]
    resized: dict[str, str]
    initialised: dict[str, str]
    unused: tuple[str, ...]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report for a log, one line for each variable that isn't simply loaded."""
        counts = f"{len(self.loaded)} loaded, {len(self.resized)} resized, "
        counts += f"{len(self.initialised)} left at initialisation, {len(self.unused)} unused"
        details = [f"resized {name}: {how}" for name, how in self.resized.items()]
        details += [f"initialised {name}: {why}" for name, why in self.initialised.items()]
        details += [f"unused {name}" for name in self.unused]
        return [counts, *details, *(f"note {note}" for note in self.notes)]


def initialise_from(
    path: str | Path, params: Params, batch_stats: PyTree, model_config: ConfigDict
) -> tuple[Params, PyTree, InitialisationReport]:
    """Replaces freshly initialised variables by those of a file, where they fit.

    Args:
      path: what `load_pretrained` reads.
      params: initialised parameters, which keep their shardings.
      batch_stats: initialised statistics, likewise.
      model_config: `config.model` of the model that they belong to.

    Returns:
      Parameters, statistics, and what was done for each.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is damaged, if nothing in it fits, or naming the field if the weights
        mean something else in this model.
    """
    source = load_pretrained(path, model_config)
    found = flatten(source.variables)
    fitted, resized = _fit_positions(found, source.model_config, model_config)
    own = flatten({"params": params, "batch_stats": batch_stats})
    has_text = any(name.startswith(_TEXT_TOWER) for name in own)
    _check_same_meaning(path, source.model_config, model_config, has_text)
    towers = [text_tower(config.text) for config in (source.model_config, model_config)]
    merged, loaded, initialised = {}, [], {}
    for name, leaf in own.items():
        if name.startswith(_TEXT_TOWER) and towers[0] != towers[1]:
            merged[name], initialised[name] = leaf, f"the file's text tower is {towers[0]}"
        elif name not in fitted:
            merged[name], initialised[name] = leaf, "not in the file"
        elif fitted[name].shape != leaf.shape:
            reason = f"shape {fitted[name].shape} in the file, {leaf.shape} in the model"
            merged[name], initialised[name] = leaf, reason
        else:
            merged[name] = placed_like(leaf, fitted[name])
            loaded += [] if name in resized else [name]
    if not loaded:
        raise ValueError(f"{path}: none of its {len(found)} tensors fits the model")
    unused = tuple(name for name in found if name not in own)
    resized = {name: how for name, how in resized.items() if name in own}
    report = InitialisationReport(tuple(loaded), resized, initialised, unused, source.notes)
    variables = unflatten(merged)
    return variables["params"], variables.get("batch_stats", {}), report


def _fit_positions(
    found: dict[str, np.ndarray], source: ConfigDict, target: ConfigDict
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Resizes the image's positions to the model's grid and cuts the text's to its context."""
    fitted, resized = dict(found), {}
    side = target.image.image_size // target.image.patch_size
    table = found.get(_IMAGE_POSITIONS)
    if table is not None and table.shape[1] != side * side:
        old = math.isqrt(table.shape[1])
        fitted[_IMAGE_POSITIONS] = resize_grid(table, side)
        resized[_IMAGE_POSITIONS] = f"{old}x{old} to {side}x{side} patches, bicubic"
    length = target.text.context_length
    same_tower = text_tower(source.text) == text_tower(target.text)
    if same_tower and length < source.text.context_length and _TEXT_POSITIONS in found:
        # What is encoded has no token at the positions that are cut off.
        fitted[_TEXT_POSITIONS] = found[_TEXT_POSITIONS][:length]
        resized[_TEXT_POSITIONS] = f"{source.text.context_length} cut to {length} tokens"
    return fitted, resized


def placed_like(leaf: Array, value: np.ndarray) -> Array:
    """Returns the value with the dtype and the sharding of the leaf that it replaces."""
    value = np.asarray(value, leaf.dtype)
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: value[index])


def _check_same_meaning(
    path: str | Path, source: ConfigDict, target: ConfigDict, has_text: bool
) -> None:
    same_tower = has_text and text_tower(source.text) == text_tower(target.text)
    for field in _SAME_FIELDS:
        section, name = field.split(".")
        if section == "text" and not same_tower:
            continue
        theirs, ours = source[section][name], target[section][name]
        if theirs != ours:
            raise ValueError(f"{path}: model.{field} is {theirs}, but {ours} in this configuration")
