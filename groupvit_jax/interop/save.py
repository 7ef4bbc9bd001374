"""The one writer behind `launch.export` and `launch.convert`."""

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
    """Writes a model.

    Args:
      path: a directory, or with "original" a `.pth` file.
      pretrained: the model.
      kind: one of `FORMATS`.

    Raises:
      ValueError: naming the field, if the format has no such model.
    """
    _WRITERS[kind](path, pretrained)
