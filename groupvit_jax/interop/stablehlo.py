"""StableHLO programs with embedded weights, which run wherever JAX does.

program = jax.export.deserialize(pathlib.Path("image.stablehlo").read_bytes())
outputs = program.call(images)
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from groupvit_jax.interop.model_config import config_to_dict
from groupvit_jax.interop.pretrained import Pretrained, describe
from groupvit_jax.models.grouping import resize_maps
from groupvit_jax.models.preprocess import normalize
from groupvit_jax.runs.configuration import config_from_dict
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


def write_stablehlo(
    directory: Path,
    pretrained: Pretrained,
    image_size: int | None = None,
    platforms: Sequence[str] = PLATFORMS,
) -> None:
    """Write `image.stablehlo`, `text.stablehlo` (unless there is a head) and `config.json`.

    Args:
      directory: output folder; created if missing.
      pretrained: the model.
      image_size: side of the images; the training size by default.
      platforms: platforms that the programs support.
    """
    config = pretrained.model_config
    side = image_size or config.image.image_size
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8)
    tokens = jax.ShapeDtypeStruct((batch, config.text.context_length), jnp.int32)
    description: dict[str, Any] = {"platforms": list(platforms), "image_size": side}
    programs: dict[str, tuple[Callable[..., Any], jax.ShapeDtypeStruct]] = {}
    if pretrained.class_names:
        programs["image"] = head_program(pretrained), images
    else:
        programs["image"] = image_program(pretrained), images
        programs["text"] = text_program(pretrained), tokens
        scale = jnp.minimum(jnp.exp(pretrained.variables["params"]["logit_scale"]), 100.0)
        description["context_length"] = config.text.context_length
        description["logit_scale"] = float(scale)  # factor of cosine similarities
    directory.mkdir(parents=True, exist_ok=True)
    # Otherwise GPUs and TPUs would multiply float32 matrices at reduced precision.
    with jax.default_matmul_precision("highest"):
        for name, (program, argument) in programs.items():
            exported = jax.export.export(jax.jit(program), platforms=platforms)(argument)
            (directory / f"{name}.stablehlo").write_bytes(exported.serialize())
    write_json(directory / "config.json", {**description, **describe(pretrained, directory)})


def _in_float32(pretrained: Pretrained) -> tuple[Any, Any]:
    config = config_from_dict(config_to_dict(pretrained.model_config))
    config.dtype = "float32"
    model = pretrained._replace(model_config=config).build_model()
    return model, jax.tree.map(jnp.asarray, pretrained.variables)
