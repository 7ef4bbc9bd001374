"""Reads checkpoints of every format, for all `--checkpoint` flags."""

import re
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from groupvit_jax.foreign import naming
from groupvit_jax.interop import huggingface, native, original
from groupvit_jax.interop.huggingface import read_huggingface
from groupvit_jax.interop.orbax_steps import read_orbax
from groupvit_jax.interop.pretrained import Pretrained
from groupvit_jax.interop.tensor_file import read_safetensors
from groupvit_jax.interop.torch_file import read_torch_file, without_prefix
from groupvit_jax.runs.bucket.fetching import local_copy
from groupvit_jax.runs.checkpoints import find_step, find_whole_step
from groupvit_jax.runs.files import read_json

_SHARD = re.compile(r".+-\d{5}-of-\d{5}\.(bin|safetensors)")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
KINDS = ("orbax", "safetensors", "huggingface", "original")


def load_pretrained(path: str | Path, model_config: ConfigDict | None = None) -> Pretrained:
    """Read a model in any format, with both towers or a segment head.

    Args:
      path: a run folder or one of its steps, an export, a Hugging Face directory, or a file of
        tensors (`.pth`, `.bin`, `.safetensors`) by the original's or Hugging Face's names, whatever
        a trainer wrapped them in.
      model_config: configuration for a `.pth` that can't be inferred (see `original.from_tensors`).

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a field or tensor doesn't fit; the message names it and the file.
    """
    path = local_copy(path)
    with naming(path):
        if _is_part_of_folder(path):
            path = path.parent
        kind = find_kind(path)
        if kind == "original":
            return _read_file(path, model_config)
        if kind == "orbax":
            return read_orbax(find_whole_step(path))
        return (native.read_native if kind == "safetensors" else read_huggingface)(path)


def _is_part_of_folder(path: Path) -> bool:
    """Whether a file is one of several that are a model together."""
    if _SHARD.fullmatch(path.name) or path.name.endswith(".index.json"):
        return True
    return path.name == "model.safetensors" and (path.parent / "config.json").is_file()


def _read_file(path: Path, model_config: ConfigDict | None) -> Pretrained:
    """Read a single file: PyTorch's or safetensors."""
    config_file = path.parent / "config.json"
    content: dict[str, Any]
    if path.suffix == ".safetensors":
        content = {}
        tensors = read_safetensors(path)
    else:
        tensors, content = read_torch_file(path)
    tensors = without_prefix(tensors, (original.ANCHOR, huggingface.ANCHOR))
    if huggingface.ANCHOR in tensors:
        return huggingface.from_tensors(tensors, path, config_file, model_config)
    return original.from_tensors(tensors, content, path, model_config)


def find_kind(path: Path) -> str:
    """Detect the format of a checkpoint, one of `KINDS`.

    Raises:
      FileNotFoundError: the path doesn't exist.
      ValueError: it has none of these formats.
    """
    if path.is_file():
        # Any single file: `_read_file` sees by whose names its tensors go.
        return "original"
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or directory{_fetching(path)}")
    # First, because a run's folder has a config.json as well.
    if find_step(path):
        return "orbax"
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if config.get("format") == native.FORMAT:
        return "safetensors"
    if "model_type" in config:
        return "huggingface"
    if any((path / name).exists() for name in ("model.safetensors", "pytorch_model.bin")):
        raise ValueError(f"{path}: weights found, but no config.json that says of what model")
    raise ValueError(
        f"{path}: no checkpoint; expected a run's folder or a step of it, an export, a Hugging "
        "Face directory (config.json with model_type) or a .pth file"
    )


def _fetching(path: Path) -> str:
    """Say how to fetch what looks like a name on Hugging Face's hub."""
    if not _HUB_NAME.fullmatch(str(path)) or path.parent.exists():
        return ""
    return (
        f"; if it is a model on the Hugging Face hub, fetch it: hf download {path} --local-dir "
        f"{path.name}, and give --checkpoint={path.name}"
    )
