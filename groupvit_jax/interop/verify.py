"""Compares a model with `transformers`' GroupViT on equal weights, and with published logits."""

import functools
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from groupvit_jax.data.text.tokenizers import make_tokenizer
from groupvit_jax.interop.pretrained import Pretrained
from groupvit_jax.models import build_model
from groupvit_jax.typing import Array, Float, Int, PyTree

# For float32 on a CPU, relative to the largest value of an output.
TOLERANCE = 2e-5

GOLDEN_TEXTS = ("a photo of a cat", "a photo of a dog")
GOLDEN_TOLERANCE = 1e-3
# Logits of COCO image 000000039769 with CLIP's preprocessing.
GOLDEN_LOGITS = {"gcc-yfcc": (13.3523, 6.3629), "gcc-redcaps": (16.1873, 8.6230)}
_CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


class Difference(NamedTuple):
    """The largest deviation of an output from the reference, and the output's largest value."""

    name: str
    scale: float
    absolute: float

    @property
    def relative(self) -> float:
        """Return the deviation relative to the output's scale."""
        return self.absolute / self.scale


def random_inputs(
    pretrained: Pretrained, batch_size: int = 2, seed: int = 0
) -> tuple[Float[np.ndarray, "B H W 3"], Int[np.ndarray, "B T"]]:
    """Return images of normal noise and texts of random tokens and lengths."""
    rng = np.random.default_rng(seed)
    side, text = pretrained.model_config.image.image_size, pretrained.model_config.text
    images = rng.normal(size=(batch_size, side, side, 3)).astype(np.float32)
    tokens = rng.integers(1, text.end_of_text_id, (batch_size, text.context_length))
    ends = rng.integers(2, text.context_length, batch_size)
    positions = np.arange(text.context_length)
    tokens[positions == ends[:, None]] = text.end_of_text_id
    tokens[positions > ends[:, None]] = 0
    return images, tokens.astype(np.int32)


def our_outputs(
    pretrained: Pretrained,
    images: Float[np.ndarray, "B H W 3"],
    tokens: Int[np.ndarray, "N T"],
) -> dict[str, np.ndarray]:
    """Return every output of both towers in evaluation mode.

    Args:
      pretrained: the model.
      images: normalised images.
      tokens: token ids.
    """
    pretrained.check_two_towers("the comparison")
    model = build_model(pretrained.model_config)
    return jax.tree.map(np.asarray, _run(model, pretrained.variables, images, tokens))


@functools.partial(jax.jit, static_argnames="model")
def _run(model: Any, variables: PyTree, images: Array, tokens: Array) -> dict[str, Array]:
    apply = functools.partial(model.apply, variables)
    embedding, features = apply(images, method="encode_image")
    outputs = {
        "pooled image": features.embedding,
        "segments": features.segments,
        "image embedding": embedding,
        "segment embeddings": apply(features.segments, method="project_groups"),
        "pooled text": apply(tokens, method=lambda model, t: model.text_encoder(t)[:, 0]),
        "text embedding": apply(tokens, method="encode_text"),
    }
    return outputs | {f"assignment {i}": a for i, a in enumerate(features.assignments)}


def transformers_outputs(
    directory: Path,
    images: Float[np.ndarray, "B H W 3"],
    tokens: Int[np.ndarray, "N T"],
) -> dict[str, np.ndarray]:
    """The outputs of `our_outputs` from `transformers`' GroupViTModel.

    Raises:
      ModuleNotFoundError: if PyTorch or transformers isn't installed.
    """
    torch, transformers = _extra("torch"), _extra("transformers")
    model = transformers.GroupViTModel.from_pretrained(directory).eval()
    with torch.no_grad():
        outputs = module_outputs(model, torch.from_numpy(images), torch.from_numpy(tokens))
    return {name: output.numpy() for name, output in outputs.items()}


def module_outputs(model: Any, images: Any, tokens: Any) -> dict[str, Any]:
    """Every output of a `GroupViTModel`, as tensors.

    Args:
      model: the PyTorch module.
      images: tensor [B, H, W, 3].
      tokens: tensor [N, T].
    """
    vision = model.vision_model
    # PyTorch's images are [B, 3, H, W].
    patches = vision.embeddings(images.permute(0, 3, 1, 2), interpolate_pos_encoding=True)
    encoded = vision.encoder(patches, output_attentions=True, return_dict=True)
    segments = vision.layernorm(encoded.last_hidden_state)
    pooled, text = segments.mean(1), model.text_model(tokens.long()).pooler_output
    # [B * G, C]: its BatchNorm1d would take the second of three axes for the channels.
    projected = model.visual_projection(segments.flatten(0, 1))
    outputs = {
        "pooled image": pooled,
        "segments": segments,
        "image embedding": model.visual_projection(pooled),
        "segment embeddings": projected.unflatten(0, segments.shape[:2]),
        "pooled text": text,
        "text embedding": model.text_projection(text),
    }
    return outputs | {f"assignment {i}": a for i, a in enumerate(encoded.attentions)}


def compare(
    outputs: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]
) -> list[Difference]:
    """The largest deviation of every output.

    Raises:
      ValueError: naming the output, if a shape differs.
    """
    rows = []
    for name, expected in reference.items():
        found = outputs[name]
        if found.shape != expected.shape:
            raise ValueError(f"{name}: shape {found.shape}, expected {expected.shape}")
        deviation = float(np.abs(found - expected).max())
        rows.append(Difference(name, float(np.abs(expected).max()), deviation))
    return rows


def golden_logits(pretrained: Pretrained, image_path: Path) -> Float[np.ndarray, "2"]:
    """Logits of an image for `GOLDEN_TEXTS`, with CLIP's preprocessing.

    Raises:
      ModuleNotFoundError: if Pillow isn't installed, whose filter CLIP resizes with.
    """
    image = clip_preprocess(image_path, pretrained.model_config.image.image_size)
    context_length = pretrained.model_config.text.context_length
    tokens = make_tokenizer(pretrained.tokenizer, context_length)(GOLDEN_TEXTS)
    outputs = our_outputs(pretrained, image[None], tokens)
    texts, embedding = (_normalised(outputs[f"{name} embedding"]) for name in ("text", "image"))
    return np.exp(pretrained.variables["params"]["logit_scale"]) * (texts @ embedding[0])


def clip_preprocess(path: Path, size: int) -> Float[np.ndarray, "H W 3"]:
    """Resize the shorter side bicubically, crop the centre and normalise as CLIP does."""
    pillow = _extra("PIL.Image")
    with pillow.open(path) as file:
        image = file.convert("RGB")
    short = min(image.size)
    # Truncated, like torchvision's Resize.
    width, height = (int(size * side / short) for side in image.size)
    image = image.resize((width, height), pillow.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    pixels = np.asarray(image.crop((left, top, left + size, top + size)), np.float32)
    return (pixels / 255 - _CLIP_MEAN) / _CLIP_STD


def _extra(name: str) -> Any:
    """Import a library that only comparisons need."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}; install the extra 'dev' to compare") from error


def _normalised(x: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
