"""Imports BERT weights for the text tower from Hugging Face directories."""

import re
from pathlib import Path
from typing import Any

from groupvit_jax.interop.huggingface import read_tensors
from groupvit_jax.interop.layout import FlatVariables, expected_shapes, gather_arrays, renamer
from groupvit_jax.models.bert_encoder import BERT_NORM_EPS
from groupvit_jax.models.two_tower import TextTower, TwoTower, text_tower
from groupvit_jax.runs.files import read_json

_PREFIX = "params/text_encoder/"
_POSITIONS = "embeddings.position_embeddings.weight"
_TOKEN_TYPES = "embeddings.token_type_embeddings.weight"
# (our field of `config.model.text`, Hugging Face's)
_FIELDS = (
    ("vocab_size", "vocab_size"),
    ("width", "hidden_size"),
    ("num_layers", "num_hidden_layers"),
    ("num_heads", "num_attention_heads"),
)
_FIXED = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "layer_norm_eps": BERT_NORM_EPS,
    "position_embedding_type": "absolute",
}

_rename = renamer(
    [
        (r"^text_encoder/token_embedding/", "embeddings/word_embeddings/"),
        (r"^text_encoder/position_embedding$", "embeddings/position_embeddings/weight"),
        (r"^text_encoder/token_type_embedding$", "embeddings/token_type_embeddings/weight"),
        (r"^text_encoder/embedding_norm/", "embeddings/LayerNorm/"),
        (r"^text_encoder/blocks_(\d+)/", r"encoder/layer/\1/"),
        (r"/attn/qkv/", "/attention/self/qkv/"),
        (r"/attn/proj/", "/attention/output/dense/"),
        (r"/norm1/", "/attention/output/LayerNorm/"),
        (r"/mlp/fc1/", "/intermediate/dense/"),
        (r"/mlp/fc2/", "/output/dense/"),
        (r"/norm2/", "/output/LayerNorm/"),
    ]
)


def names(name: str) -> tuple[str, ...]:
    """Return Hugging Face's names for one of our text tower's arrays."""
    foreign = _rename(name)
    if ".self.qkv." not in foreign:
        return (foreign,)
    return tuple(foreign.replace(".qkv.", f".{part}.") for part in ("query", "key", "value"))


def read_text_config(directory: Path, context_length: int, end_of_text_id: int) -> dict[str, Any]:
    """Return the `config.model.text` that matches a directory's BERT.

    Args:
      directory: contains the `config.json` of a `BertModel`.
      context_length: longest text, at most the BERT's number of positions.
      end_of_text_id: end-of-text id of the tokenizer.

    Raises:
      FileNotFoundError: there is no `config.json`.
      ValueError: it doesn't describe a BERT, or one that our tower doesn't support.
    """
    path = directory / "config.json"
    config = read_json(path)
    for field, expected in _FIXED.items():
        # transformers leaves out fields that have its defaults, and these are they.
        if (found := config.get(field, expected)) != expected:
            raise ValueError(f"{path}: {field} is {found!r}, only {expected!r} is supported")
    missing = [field for _, field in _FIELDS if field not in config]
    if missing:
        raise ValueError(f"{path}: no field {missing[0]}, expected the configuration of a BERT")
    text = {ours: config[theirs] for ours, theirs in _FIELDS}
    hidden = config.get("intermediate_size", 4 * text["width"])
    return {
        "kind": "bert",
        **text,
        "mlp_ratio": hidden / text["width"],
        "context_length": context_length,
        "end_of_text_id": end_of_text_id,
    }


def read_bert(directory: Path, model: TwoTower) -> tuple[FlatVariables, tuple[str, ...]]:
    """Read the text tower of a model from a Hugging Face directory.

    Args:
      directory: contains `config.json` and `model.safetensors` (a single file, shards with
        `model.safetensors.index.json`, or `pytorch_model.bin`) of a `BertModel`, or of a BERT with
        heads, which are ignored.
      model: its text tower must have the BERT's sizes; it uses the first of the BERT's positions.

    Returns:
      The tower's variables by path, and the names of unused tensors.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: fields differ or a tensor doesn't fit; the message names them.
    """
    _check_sizes(directory, model.text_encoder)
    path, tensors = read_tensors(directory)
    source = {_modern_name(name): array for name, array in tensors.items()}
    length = model.text_encoder.context_length
    # All our tokens are of type 0, so of the two types' rows one is kept.
    for name, rows in ((_POSITIONS, slice(length)), (_TOKEN_TYPES, 0)):
        if name in source:
            source[name] = source[name][rows]
    if len(source.get(_POSITIONS, range(length))) < length:
        raise ValueError(
            f"{path}: {len(source[_POSITIONS])} positions found, expected at least "
            f"config.model.text.context_length = {length}"
        )
    shapes = {n: s for n, s in expected_shapes(model).items() if n.startswith(_PREFIX)}
    flat = gather_arrays(source, shapes, names, path)
    used = {part for name in shapes for part in names(name)}
    return flat, tuple(sorted(set(source) - used))


def _check_sizes(directory: Path, text: TextTower) -> None:
    if (kind := text_tower(text)) != "bert":
        raise ValueError(f"config.model.text.kind is {kind!r}, expected 'bert' to take {directory}")
    expected = read_text_config(directory, text.context_length, text.end_of_text_id)
    fields = [ours for ours, _ in _FIELDS]
    # Compare only the width of the MLP: the ratio may have been rounded.
    if round(text.width * text.mlp_ratio) != round(expected["width"] * expected["mlp_ratio"]):
        fields.append("mlp_ratio")
    wrong = [
        f"config.model.text.{field} is {getattr(text, field)}, expected {expected[field]}"
        for field in fields
        if getattr(text, field) != expected[field]
    ]
    if wrong:
        raise ValueError(f"{directory}: {'; '.join(wrong)}")


def _modern_name(name: str) -> str:
    """Strip the prefix of models with heads, and translate older LayerNorm names."""
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name.removeprefix("bert."))
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
