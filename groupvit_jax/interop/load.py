"""The one reader behind every `--checkpoint`."""

from pathlib import Path

from ml_collections import ConfigDict

from groupvit_jax.interop import native
from groupvit_jax.interop.huggingface import read_huggingface
from groupvit_jax.interop.orbax_steps import read_orbax
from groupvit_jax.interop.original import read_original
from groupvit_jax.interop.pretrained import Pretrained
from groupvit_jax.runs.checkpoints import find_step
from groupvit_jax.runs.files import read_json

KINDS = ("orbax", "safetensors", "huggingface", "original")


def load_pretrained(path: str | Path, model_config: ConfigDict | None = None) -> Pretrained:
    """Reads a model of any kind, of both towers or with a segment head.

    Args:
      path: a run's folder or a step of it, an export's or a Hugging Face directory, or a `.pth`.
      model_config: of the model, for a `.pth` whose tensors don't tell (see `read_original`).

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: naming the file and the field or tensor that doesn't fit.
    """
    path = Path(path)
    kind = find_kind(path)
    if kind == "original":
        return read_original(path, model_config)
    if kind == "orbax":
        return read_orbax(find_step(path) or path)
    return (native.read_native if kind == "safetensors" else read_huggingface)(path)


def find_kind(path: Path) -> str:
    """Tells which of `KINDS` a path is.

    Raises:
      FileNotFoundError: if there is nothing at the path.
      ValueError: if it is none of them.
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
