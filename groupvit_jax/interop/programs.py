"""Programs with embedded weights, for processes without this package: StableHLO and ONNX.

program = jax.export.deserialize(pathlib.Path("image.stablehlo").read_bytes())
outputs = program.call(images)

session = onnxruntime.InferenceSession("image.onnx")
outputs = session.run(None, {"images": images})
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from groupvit_jax.interop.pretrained import Pretrained, to_description
from groupvit_jax.models.grouping import resize_maps
from groupvit_jax.models.preprocess import normalize
from groupvit_jax.runs.configuration import changed
from groupvit_jax.runs.files import write_json
from groupvit_jax.typing import Array, Float, Int, UInt8

PLATFORMS = ("cpu", "cuda", "tpu")


def image_program(pretrained: Pretrained) -> Callable[[UInt8[Array, "B H W 3"]], dict[str, Any]]:
    """Build the function from RGB images to float32 outputs.

    Returns:
      A function that returns "embedding" [B, D] and "segments" [B, G, D], both in the joint space
      and not normalised, and "assignments", one [B, groups, segments] per grouping block.
    """
    model, variables = _in_float32(pretrained)

    def program(images: UInt8[Array, "B H W 3"]) -> dict[str, Any]:
        embedding, features = model.apply(variables, normalize(images), method=model.encode_image)
        segments = model.apply(variables, features.segments, method=model.project_groups)
        return {
            "embedding": embedding,
            "segments": segments,
            "assignments": features.assignments,
        }

    return program


def head_program(pretrained: Pretrained) -> Callable[[UInt8[Array, "B H W 3"]], dict[str, Any]]:
    """Build the function that segments RGB images with a trained head.

    Returns:
      A function that returns "labels" [B, H, W], the most probable class of each pixel by
      `losses.mixture_log_likelihood`, class "logits" of each segment [B, G, N], and
      "assignments", one [B, groups, segments] per grouping block.
    """
    model, variables = _in_float32(pretrained)

    def program(images: UInt8[Array, "B H W 3"]) -> dict[str, Any]:
        output = model.apply(variables, normalize(images))
        H, W = images.shape[1:3]
        maps = resize_maps(output.maps, (H, W), model.image_encoder.patch_size)
        # [B, H, W, G] @ [B, 1, G, N] -> [B, H, W, N]
        scores = maps @ jax.nn.softmax(output.logits)[:, None]
        return {
            "labels": scores.argmax(-1).astype(jnp.int32),
            "logits": output.logits,
            "assignments": output.features.assignments,
        }

    return program


def text_program(pretrained: Pretrained) -> Callable[[Int[Array, "B T"]], Float[Array, "B D"]]:
    """Build the function from token ids to embeddings in the joint space, not normalised."""
    model, variables = _in_float32(pretrained)

    def program(tokens: Int[Array, "B T"]) -> Float[Array, "B D"]:
        return model.apply(variables, tokens, method=model.encode_text)

    return program


class _Program(NamedTuple):
    """A function to export: its argument, and the name of it."""

    function: Callable[[Any], Any]
    argument: jax.ShapeDtypeStruct
    argument_name: str


def write_stablehlo(
    directory: Path,
    pretrained: Pretrained,
    image_sizes: Sequence[int] = (),
    platforms: Sequence[str] = PLATFORMS,
) -> None:
    """Write `image.stablehlo`, `text.stablehlo` (unless there is a head) and `config.json`.

    Args:
      directory: output folder; created if missing.
      pretrained: the model.
      image_sizes: sides of the images, by default the training size; several give a program each,
        `image_SIZE.stablehlo`.
      platforms: platforms that the programs support.
    """
    # A symbol in place of a size: one program for batches of any size.
    (batch,) = jax.export.symbolic_shape("batch")
    programs = _programs(pretrained, image_sizes, batch)
    directory.mkdir(parents=True, exist_ok=True)
    # Otherwise GPUs and TPUs would multiply float32 matrices at reduced precision.
    with jax.default_matmul_precision("highest"):
        for name, program in programs.items():
            jitted = jax.jit(program.function)
            exported = jax.export.export(jitted, platforms=platforms)(program.argument)
            (directory / f"{name}.stablehlo").write_bytes(exported.serialize())
    _write_description(directory, pretrained, image_sizes, {"platforms": list(platforms)})


def write_onnx(directory: Path, pretrained: Pretrained, image_sizes: Sequence[int] = ()) -> None:
    """Write `image.onnx`, `text.onnx` (unless there is a head) and `config.json`.

    The graphs are those of `write_stablehlo`, in float32, for batches of any size.

    Args:
      directory: output folder; created if missing.
      pretrained: the model.
      image_sizes: as for `write_stablehlo`.

    Raises:
      ValueError: the package onnx is missing.
    """
    if importlib.util.find_spec("onnx") is None:
        raise ValueError("--format=onnx: the package onnx is missing, install the extra 'onnx'")
    # Imported here: every other format does without the package.
    from groupvit_jax.interop.onnx_graph import export_graph

    (batch,) = jax.export.symbolic_shape("batch")
    programs = _programs(pretrained, image_sizes, batch)
    directory.mkdir(parents=True, exist_ok=True)
    for name, program in programs.items():
        graph = export_graph(program.function, program.argument, batch, program.argument_name)
        (directory / f"{name}.onnx").write_bytes(graph.SerializeToString())
    _write_description(directory, pretrained, image_sizes)


def _programs(
    pretrained: Pretrained, image_sizes: Sequence[int], batch: Any
) -> dict[str, _Program]:
    """Return what to export, by the names of files without their endings."""
    config, has_head = pretrained.model_config, bool(pretrained.class_names)
    sizes = image_sizes or (config.image.image_size,)
    of_images = head_program(pretrained) if has_head else image_program(pretrained)
    programs = {}
    for side in sizes:
        images = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8)
        name = "image" if len(sizes) == 1 else f"image_{side}"
        programs[name] = _Program(of_images, images, "images")
    if not has_head:
        tokens = jax.ShapeDtypeStruct((batch, config.text.context_length), jnp.int32)
        programs["text"] = _Program(text_program(pretrained), tokens, "tokens")
    return programs


def _write_description(
    directory: Path,
    pretrained: Pretrained,
    image_sizes: Sequence[int],
    more: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write what a consumer needs besides the programs to `config.json`."""
    config = pretrained.model_config
    sizes = list(image_sizes) or [config.image.image_size]
    description = {**more, "image_size": sizes[0], "image_sizes": sizes}
    if not pretrained.class_names:
        # As the loss bounds it.
        scale = jnp.minimum(jnp.exp(pretrained.variables["params"]["logit_scale"]), 100.0)
        description["context_length"] = config.text.context_length
        description["logit_scale"] = float(scale)  # factor of cosine similarities
    write_json(directory / "config.json", {**description, **to_description(pretrained, directory)})


def _in_float32(pretrained: Pretrained) -> tuple[Any, Any]:
    # How training computes the blocks; the parameters are the same tree without it.
    plain = {"scan_layers": False, "remat": "none", "fused_attention": False}
    config = changed(pretrained.model_config, {"dtype": "float32", **plain})
    model = pretrained._replace(model_config=config).build_model()
    return model, jax.tree.map(jnp.asarray, pretrained.variables)
