"""Reads checkpoints of every format, for all `--checkpoint` flags."""

from pathlib import Path

from ml_collections import ConfigDict

from groupvit_jax.foreign import naming
from groupvit_jax.interop import native
from groupvit_jax.interop.huggingface import read_huggingface
from groupvit_jax.interop.orbax_steps import read_orbax
from groupvit_jax.interop.original import read_original
from groupvit_jax.interop.pretrained import Pretrained
from groupvit_jax.runs.checkpoints import find_step, find_whole_step
from groupvit_jax.runs.files import read_json

KINDS = ("orbax", "safetensors", "huggingface", "original")


def load_pretrained(path: str | Path, model_config: ConfigDict | None = None) -> Pretrained:
    """Read a model in any format, with both towers or a segment head.

    Args:
      path: a run folder or one of its steps, an export, a Hugging Face directory, or a `.pth`.
      model_config: configuration for a `.pth` that can't be inferred (see `read_original`).

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a field or tensor doesn't fit; the message names it and the file.
    """
    path = Path(path)
    with naming(path):
        return _load(path, model_config)


def _load(path: Path, model_config: ConfigDict | None) -> Pretrained:
    kind = find_kind(path)
    if kind == "original":
        return read_original(path, model_config)
    if kind == "orbax":
        return read_orbax(find_whole_step(path))
    return (native.read_native if kind == "safetensors" else read_huggingface)(path)


def find_kind(path: Path) -> str:
    """Detect the format of a checkpoint, one of `KINDS`.

    Raises:
      FileNotFoundError: the path doesn't exist.
      ValueError: it has none of these formats.
    """
    if path.is_file():
        return "original"
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or directory")
    if find_step(path):
        return "orbax"
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if config.get("format") == native.FORMAT:
        return "safetensors"
    if "model_type" in config:
        return "huggingface"
    raise ValueError(
        f"{path}: no checkpoint; expected a run's folder or a step of it, an export, a Hugging "
        "Face directory (config.json with model_type) or a .pth file"
    )
