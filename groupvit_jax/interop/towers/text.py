"""Starts the text tower from a BERT, a CLIP or a SigLIP (`config.text_init_from`)."""

from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from groupvit_jax.foreign import naming
from groupvit_jax.interop import bert_weights
from groupvit_jax.interop.huggingface import names, read_tensors
from groupvit_jax.interop.initialise import InitialisationReport, placed_like
from groupvit_jax.interop.layout import (
    FlatVariables,
    expected_shapes,
    gather_arrays,
    unflatten,
)
from groupvit_jax.models.layers import LAYER_NORM_EPS
from groupvit_jax.models.siglip_text_encoder import SIGLIP_NORM_EPS
from groupvit_jax.models.two_tower import TwoTower, build_model, text_tower
from groupvit_jax.runs.files import read_json
from groupvit_jax.typing import Params, PyTree

__all__ = ["initialise_text_from", "read_text_config"]

_PREFIX = "params/text_encoder/"
_POSITIONS = "text_model.embeddings.position_embedding.weight"
# By transformers' `model_type`, the value of `config.model.text.kind`.
_KINDS = {
    "clip": "clip",
    "clip_text_model": "clip",
    "siglip": "siglip",
    "siglip_text_model": "siglip",
    "siglip2": "siglip",
    "siglip2_text_model": "siglip",
}
# By our field of `config.model.text`: transformers', and its default there.
_FIELDS: dict[str, dict[str, tuple[str, int]]] = {
    "clip": {
        "vocab_size": ("vocab_size", 49408),
        "width": ("hidden_size", 512),
        "num_layers": ("num_hidden_layers", 12),
        "num_heads": ("num_attention_heads", 8),
    },
    "siglip": {
        "vocab_size": ("vocab_size", 32000),
        "width": ("hidden_size", 768),
        "num_layers": ("num_hidden_layers", 12),
        "num_heads": ("num_attention_heads", 12),
        # The padding counts, so a text has as many tokens as in the published training.
        "context_length": ("max_position_embeddings", 64),
    },
}
_FIXED = {
    "clip": {"hidden_act": "quick_gelu", "layer_norm_eps": LAYER_NORM_EPS},
    "siglip": {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": SIGLIP_NORM_EPS},
}
_HIDDEN = {"clip": 2048, "siglip": 3072}


def initialise_text_from(
    path: str | Path, params: Params, batch_stats: PyTree, model_config: ConfigDict
) -> tuple[Params, PyTree, InitialisationReport]:
    """Initialise the text tower from a Hugging Face directory of a CLIP, a SigLIP or a BERT.

    The directory's `config.json` says which it is. The other arguments, results and errors are
    those of `initialise_from`.
    """
    model = build_model(model_config)
    with naming(path):
        file = Path(path) / "config.json"
        kind = read_json(file).get("model_type", "bert")  # old ones of BERTs lack it
        notes: tuple[str, ...] = ()
        if kind in _KINDS:
            flat, unused, notes = _read_tower(Path(path), model)
        elif kind == "bert":
            flat, unused = bert_weights.read_bert(Path(path), model)
        else:
            known = " or ".join(map(repr, ("bert", *_KINDS)))
            raise ValueError(f"{file}: model_type is {kind!r}, only {known} is supported")
    arrays = unflatten({name.removeprefix(_PREFIX): array for name, array in flat.items()})
    tower = jax.tree.map(placed_like, dict(params["text_encoder"]), arrays)
    report = InitialisationReport(tuple(flat), {}, {}, unused, notes)
    return {**params, "text_encoder": tower}, batch_stats, report


def read_text_config(directory: Path) -> dict[str, Any]:
    """Return the fields of `config.model.text` that the text model of a CLIP or SigLIP requires.

    Raises:
      FileNotFoundError: there is no `config.json`.
      ValueError: a field has a value that our tower doesn't support.
    """
    path = directory / "config.json"
    config = read_json(path)
    kind = _KINDS[config["model_type"]]
    config = config.get("text_config") or config
    for field, expected in _FIXED[kind].items():
        if (found := config.get(field, expected)) != expected:
            raise ValueError(f"{path}: {field} is {found!r}, only {expected!r} is supported")
    text: dict[str, Any] = {
        ours: config.get(theirs, default) for ours, (theirs, default) in _FIELDS[kind].items()
    }
    if kind == "siglip" and (size := config.get("projection_size")) not in (None, text["width"]):
        raise ValueError(
            f"{path}: projection_size is {size}, only hidden_size {text['width']} is supported"
        )
    hidden = config.get("intermediate_size", _HIDDEN[kind])
    return {"kind": kind, **text, "mlp_ratio": hidden / text["width"]}


def _read_tower(
    directory: Path, model: TwoTower
) -> tuple[FlatVariables, tuple[str, ...], tuple[str, ...]]:
    """Return the tower's variables by path, the names of unused tensors, and notes."""
    tower = model.text_encoder
    required = read_text_config(directory)
    found = {field: getattr(tower, field) for field in required if field != "kind"}
    found["kind"] = text_tower(tower)
    wrong = [
        f"config.model.text.{field} is {found[field]!r}, expected {expected!r}"
        for field, expected in required.items()
        if found[field] != expected
    ]
    if wrong:
        raise ValueError(f"{directory}: {'; '.join(wrong)}")
    path, tensors = read_tensors(directory)
    # Of a text model alone, transformers leaves the prefix out.
    bare = not any(name.startswith("text_model.") for name in tensors)
    source = {f"text_model.{name}" if bare else name: array for name, array in tensors.items()}
    # Texts never have tokens at the positions that are cut off.
    length, table = tower.context_length, source.get(_POSITIONS)
    notes: tuple[str, ...] = ()
    if table is not None:
        if len(table) < length:
            raise ValueError(
                f"{path}: {len(table)} positions found, expected at least "
                f"config.model.text.context_length = {length}"
            )
        source[_POSITIONS] = table[:length]
        notes = (f"{len(table)} positions cut to {length}",) if len(table) > length else ()
    shapes = expected_shapes(model)
    shapes = {name: shape for name, shape in shapes.items() if name.startswith(_PREFIX)}
    flat = gather_arrays(source, shapes, names, path)
    used = {part for name in shapes for part in names(name)}
    return flat, tuple(sorted(set(source) - used)), notes
