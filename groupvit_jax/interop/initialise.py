"""Initialises training from weights in any format and resolution (`config.init_from`)."""

import math
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from groupvit_jax.interop.layout import flatten, unflatten
from groupvit_jax.interop.load import load_pretrained
from groupvit_jax.interop.pretrained import resize_grid
from groupvit_jax.models.two_tower import TwoTower, build_model, text_tower
from groupvit_jax.typing import Array, Params, PyTree

_IMAGE_POSITIONS = "params/image_encoder/position_embedding"
_TEXT_POSITIONS = "params/text_encoder/position_embedding"
_TEXT_TOWER = "params/text_encoder/"


class InitialisationReport(NamedTuple):
    """The origin of each variable of a model.

    Attributes:
      loaded: variables copied from the file.
      resized: position embeddings fitted to another grid or context, with details.
      initialised: variables left at their initial values, with the reason.
      unused: variables of the file that the model doesn't have.
      notes: what the file lacked and the value used instead.
    """

    loaded: tuple[str, ...]
    resized: dict[str, str]
    initialised: dict[str, str]
    unused: tuple[str, ...]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the report as log lines, one per variable that was not simply copied."""
        counts = f"{len(self.loaded)} loaded, {len(self.resized)} resized, "
        counts += f"{len(self.initialised)} left at initialisation, {len(self.unused)} unused"
        details = [f"resized {name}: {how}" for name, how in self.resized.items()]
        details += [f"initialised {name}: {why}" for name, why in self.initialised.items()]
        details += [f"unused {name}" for name in self.unused]
        return [counts, *details, *(f"note {note}" for note in self.notes)]


def initialise_from(
    path: str | Path, params: Params, batch_stats: PyTree, model_config: ConfigDict
) -> tuple[Params, PyTree, InitialisationReport]:
    """Replace initialised variables by those of a file if they fit.

    Args:
      path: a checkpoint in any format of `load_pretrained`.
      params: initialised parameters; their shardings are kept.
      batch_stats: initialised statistics; their shardings are kept.
      model_config: `config.model` of these variables.

    Returns:
      Parameters, statistics, and a report.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, nothing in it fits, or a field (named in the message) gives
        the weights another meaning in this model.
    """
    source = load_pretrained(path, model_config)
    found = flatten(source.variables)
    models = build_model(source.model_config), build_model(model_config)
    fitted, resized = _fit_positions(found, *models)
    own = flatten({"params": params, "batch_stats": batch_stats})
    has_text = any(name.startswith(_TEXT_TOWER) for name in own)
    towers = [text_tower(model.text_encoder) for model in models]
    _check_same_meaning(path, *models, has_text and towers[0] == towers[1])
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
    found: dict[str, np.ndarray], source: TwoTower, target: TwoTower
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Resize image positions to the model's grid and truncate text positions to its context."""
    fitted, resized = dict(found), {}
    side = target.image_encoder.image_size // target.image_encoder.patch_size
    table = found.get(_IMAGE_POSITIONS)
    if table is not None and table.shape[1] != side * side:
        old = math.isqrt(table.shape[1])
        fitted[_IMAGE_POSITIONS] = resize_grid(table, side)
        resized[_IMAGE_POSITIONS] = f"{old}x{old} to {side}x{side} patches, bicubic"
    text, length = source.text_encoder, target.text_encoder.context_length
    same_tower = text_tower(text) == text_tower(target.text_encoder)
    if same_tower and length < text.context_length and _TEXT_POSITIONS in found:
        # Texts never have tokens at the truncated positions.
        fitted[_TEXT_POSITIONS] = found[_TEXT_POSITIONS][:length]
        resized[_TEXT_POSITIONS] = f"{text.context_length} cut to {length} tokens"
    return fitted, resized


def placed_like(leaf: Array, value: np.ndarray) -> Array:
    """Return the value with the dtype and sharding of the leaf it replaces."""
    value = np.asarray(value, leaf.dtype)
    # Each process has read the whole file, and gives its devices their shards of it.
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: value[index])


def _check_same_meaning(
    path: str | Path, source: TwoTower, target: TwoTower, with_text: bool
) -> None:
    """Raise ValueError where the same arrays would compute something else in the target."""
    for tower in ("image", "text") if with_text else ("image",):
        # The shape of a fused projection doesn't tell into how many heads it is divided.
        theirs, ours = (getattr(model, f"{tower}_encoder").num_heads for model in (source, target))
        if theirs != ours:
            raise ValueError(
                f"{path}: model.{tower}.num_heads is {theirs}, but {ours} in this configuration"
            )
