"""Writes models in every format, for `launch.export` and `launch.convert`."""

from pathlib import Path

from groupvit_jax.interop.huggingface import write_huggingface
from groupvit_jax.interop.native import write_native
from groupvit_jax.interop.original import write_original
from groupvit_jax.interop.pretrained import Pretrained
from groupvit_jax.interop.stablehlo import write_stablehlo

_WRITERS = {
    "safetensors": write_native,
    "huggingface": write_huggingface,
    "original": write_original,
    "stablehlo": write_stablehlo,
}
FORMATS = tuple(_WRITERS)


def save_pretrained(path: Path, pretrained: Pretrained, kind: str) -> None:
    """Write a model.

    Args:
      path: a directory, or a `.pth` file for "original".
      pretrained: the model.
      kind: one of `FORMATS`.

    Raises:
      ValueError: the format doesn't support the model; the message names the field.
    """
    _WRITERS[kind](path, pretrained)
