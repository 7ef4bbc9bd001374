"""Writes models in every format, for `launch.export` and `launch.convert`."""

from collections.abc import Sequence
from pathlib import Path

from groupvit_jax.interop.hub_files import Origin
from groupvit_jax.interop.huggingface import write_huggingface
from groupvit_jax.interop.native import write_native
from groupvit_jax.interop.original import write_original
from groupvit_jax.interop.pretrained import Pretrained, with_image_size
from groupvit_jax.interop.programs import write_onnx, write_stablehlo

_WRITERS = {"safetensors": write_native, "original": write_original}
# Programs are for images of certain sizes.
_PROGRAM_WRITERS = {"stablehlo": write_stablehlo, "onnx": write_onnx}
FORMATS = ("safetensors", "huggingface", "original", *_PROGRAM_WRITERS)


def save_pretrained(
    path: Path,
    pretrained: Pretrained,
    kind: str,
    image_sizes: Sequence[int] = (),
    *,
    origin: Origin | None = None,
    licence: str = "",
) -> None:
    """Write a model.

    Args:
      path: a directory, or a `.pth` file for "original".
      pretrained: the model.
      kind: one of `FORMATS`.
      image_sizes: sides of the images, by default the training size; only programs ("stablehlo",
        "onnx") can have several. In other formats the position embeddings are resized.
      origin: of the weights, for a model card.
      licence: of the weights, for a model card.

    Raises:
      ValueError: the format doesn't support the model or several sizes; the message names the
        field.
    """
    if kind in _PROGRAM_WRITERS:
        _PROGRAM_WRITERS[kind](path, pretrained, image_sizes)
        return
    if len(image_sizes) > 1:
        raise ValueError(
            f"--image_size: {len(image_sizes)} sizes found for {kind}, expected one; "
            f"{' and '.join(_PROGRAM_WRITERS)} can have several"
        )
    for size in image_sizes:
        pretrained = with_image_size(pretrained, size)
    if kind == "huggingface":
        write_huggingface(path, pretrained, origin, licence)
    else:
        _WRITERS[kind](path, pretrained)
