"""Segmentation of photos against the published procedure, in images per second.

    python -m benchmarks.evaluate --images=DIR [--checkpoint=PATH] [--num_images=20]

The published procedure takes one window of one image at a time, runs the encoder once for the
assignments and once more for the features, paints a map for each class, and enlarges the maps of
one image at a time. Here it is jitted too, with the same weights on the same photos; before timing,
the labels of both are compared. Rounds of both alternate; the figures are medians.
"""

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks.random_model import random_pretrained
from groupvit_jax import parallel
from groupvit_jax.data.images.decode import decode
from groupvit_jax.data.text.tokenizers import make_tokenizer
from groupvit_jax.eval.encoding import Encoder, encode_images, project_groups
from groupvit_jax.eval.inference import WindowEncoder
from groupvit_jax.eval.protocol import make_protocol
from groupvit_jax.eval.segment_images import ImageSegmenter
from groupvit_jax.eval.windows import resize_to_fit, window_starts
from groupvit_jax.interop import load_pretrained
from groupvit_jax.losses import clipped_scale, l2_normalize
from groupvit_jax.models import build_model
from groupvit_jax.models.preprocess import normalize
from launch import common

_IMAGES = flags.DEFINE_string("images", None, "folder of .jpg files", required=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "a model; random weights by default")
_NUM_IMAGES = flags.DEFINE_integer("num_images", 20, "photos in a round")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "rounds of each side")
_WINDOWS = flags.DEFINE_integer("windows_at_once", None, "windows in a batch of ours")
_CLASSES = (
    "airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "table",
    "dog", "horse", "motorbike", "person", "plant", "sheep", "sofa", "train", "monitor",
)  # fmt: skip


class PublishedProcedure:
    """One window after another, the encoder twice for each, a full map for each class."""

    def __init__(self, model, variables, text, protocol):
        self._protocol = protocol
        arguments = (model, variables, text, protocol)
        self._assign = jax.jit(functools.partial(_assign, *arguments))
        self._classify = jax.jit(functools.partial(_classify, *arguments))
        self._enlarge = jax.jit(_enlarge, static_argnums=1)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the labels of an image."""
        resized, side = resize_to_fit(image, self._protocol.resize), self._protocol.window
        size = resized.shape[:2]
        rows, columns = (window_starts(n, min(n, side), self._protocol.stride) for n in size)
        total, count = jnp.zeros((*size, len(_CLASSES) + 1)), np.zeros((*size, 1))
        for y in rows:
            for x in columns:
                window = resized[None, y : y + side, x : x + side]
                h, w = window.shape[1:3]
                maps = self._classify(window, self._assign(window))
                total = total.at[y : y + h, x : x + w].add(maps)
                count[y : y + h, x : x + w] += 1
        return np.asarray(self._enlarge(total / count, image.shape[:2]))


def _assign(model, variables, text, protocol, window):
    _, features = encode_images(model, variables, normalize(window))
    first, *others = features.assignments
    of_patch = functools.reduce(lambda a, b: jnp.einsum("bhg,bgl->bhl", b, a), others, first)
    patch, (h, w) = model.image_encoder.patch_size, window.shape[1:3]
    grid = (-(-h // patch), -(-w // patch))
    maps = of_patch[0].reshape(-1, *grid)
    shape = (maps.shape[0], grid[0] * patch, grid[1] * patch)
    return jax.image.resize(maps, shape, "bilinear", antialias=False)[:, :h, :w].argmax(0)


def _classify(model, variables, text, protocol, window, groups):
    image, features = encode_images(model, variables, normalize(window))
    embeddings = l2_normalize(project_groups(model, variables, features.segments)[0])
    affinity = embeddings @ text.T * clipped_scale(variables["params"]["logit_scale"])
    _, best = jax.lax.top_k(l2_normalize(image)[0] @ text.T, protocol.num_kept)
    kept = jnp.zeros(len(text), bool).at[best].set(True)
    scores = jax.nn.softmax(jnp.where(kept, affinity, -jnp.inf)) * jax.nn.softmax(affinity)
    maps = jax.nn.one_hot(groups, len(scores)) @ scores
    enough = jnp.minimum(protocol.background_threshold, scores.max())
    background = (maps.max(-1, keepdims=True) < enough).astype(maps.dtype)
    return jnp.concatenate([background, maps], axis=-1)


def _enlarge(maps, size):
    return jax.image.resize(maps, (*size, maps.shape[-1]), "bilinear", antialias=False).argmax(-1)


def _median_rates(
    sides: dict[str, Callable[[Sequence[np.ndarray]], list[np.ndarray]]], images: list[np.ndarray]
) -> dict[str, float]:
    """Images per second of each side."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(_ROUNDS.value):
        for name, segment in sides.items():
            start = time.perf_counter()
            segment(images)
            seconds[name].append(time.perf_counter() - start)
    return {name: len(images) / float(np.median(times)) for name, times in seconds.items()}


def main(argv: Sequence[str]) -> None:
    """Compare, measure and print a table."""
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    paths = sorted(Path(_IMAGES.value).glob("*.jpg"))[: _NUM_IMAGES.value]
    images = [decode(path.read_bytes()) for path in paths]
    path = _CHECKPOINT.value
    pretrained = load_pretrained(path) if path else random_pretrained()
    model, variables = build_model(pretrained.model_config), pretrained.variables
    mesh = parallel.make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
    tokenizer = make_tokenizer(pretrained.tokenizer, model.text_encoder.context_length)
    encoder = Encoder(model, tokenizer, mesh)
    protocol = make_protocol("groupvit", "voc", has_background=True)
    on_first = jax.device_put(variables, jax.devices()[0])
    variables = jax.device_put(variables, parallel.replicated(mesh))
    text = encoder.class_embeddings(variables, _CLASSES, protocol.prompts)
    published = PublishedProcedure(model, on_first, text, protocol)
    ours = ImageSegmenter(WindowEncoder(encoder, protocol, windows_at_once=_WINDOWS.value))
    sides = {
        "published": lambda images: [published(image) for image in images],
        "ours": lambda images: [found.mask for found in ours(variables, text, images)],
    }
    labels = {name: segment(images) for name, segment in sides.items()}
    same = [(a == b).ravel() for a, b in zip(*labels.values(), strict=True)]
    print(f"{len(images)} photos, {jax.device_count()} x {jax.devices()[0].device_kind}")
    print(f"equal labels: {np.concatenate(same).mean():.4%}")
    rates = _median_rates(sides, images)
    for name, rate in rates.items():
        print(f"{name:10} {rate:7.2f} images/s  {rate / rates['published']:.2f}x")


if __name__ == "__main__":
    common.use_all_cores()  # as launch.evaluate does; what runs on one device still uses them all
    app.run(main)
