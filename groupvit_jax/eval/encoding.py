"""Jitted encoders for evaluation, for any number of examples and devices."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from groupvit_jax import parallel
from groupvit_jax.data.text.names import expanded, key_of, keys_of
from groupvit_jax.data.text.packing import trim
from groupvit_jax.data.text.tokenizers import Tokenizer
from groupvit_jax.losses import l2_normalize
from groupvit_jax.models.preprocess import normalize
from groupvit_jax.models.two_tower import TwoTower
from groupvit_jax.typing import Array, Float, ImageFeatures, Int, Params, UInt8

# Prompts of the published evaluation. Six are from CLIP's notebooks, which have "the" in the
# second.
IMAGENET_PROMPTS = (
    "itap of a {}.",
    "a bad photo of a {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
SEGMENTATION_PROMPTS = ("a photo of a {}.",)
_TEXTS_AT_ONCE = 256
# Templates for all classes, or by class, "" being all others.
Prompts = Sequence[str] | Mapping[str, Sequence[str]]


def encode_images(
    model: TwoTower, variables: Params, images: Float[Array, "B H W 3"]
) -> tuple[Float[Array, "B D"], ImageFeatures]:
    """Return joint embeddings (not normalised) and features of normalised images."""
    result: Any = model.apply(variables, images, method="encode_image")
    return result


def project_groups(
    model: TwoTower, variables: Params, segments: Float[Array, "B G C"]
) -> Float[Array, "B G D"]:
    """Return joint embeddings (not normalised) of segments."""
    result: Any = model.apply(variables, segments, method="project_groups")
    return result


class ImageTower:
    """A model's image tower on a mesh, the part that evaluators of every task use.

    Results are replicated, so every process sees every embedding.
    """

    def __init__(self, model: Any, mesh: Mesh) -> None:
        """Wrap a model with an `image_encoder`; compilation happens at the first use."""
        self.model, self.mesh = model, mesh
        compiled = functools.partial(jax.jit, out_shardings=parallel.replicated(mesh))
        self.image_features = compiled(self._image_features)
        self.replicate = compiled(lambda arrays: arrays)

    def _image_features(
        self, variables: Params, images: UInt8[Array, "B H W 3"]
    ) -> Float[Array, "B C"]:
        """Return the tower's pooled embeddings, before the projector."""

        def encode(model: Any, images: Array) -> Array:
            return model.image_encoder(images).embedding

        embeddings: Any = self.model.apply(variables, normalize(images), method=encode)
        return embeddings

    def class_embeddings(
        self, variables: Params, names: Sequence[str], prompts: Prompts
    ) -> Float[np.ndarray, "N *names D"]:
        """Return the vectors that segments are compared with, one row per class."""
        raise NotImplementedError

    def image_sizes(self, resize: int | None, crop: int | None) -> tuple[int, int]:
        """Return shorter side and crop; by default in the published ratio 256 : 224."""
        crop = crop or self.model.image_encoder.image_size
        return resize or round(crop * 256 / 224), crop

    def batch_size(self, wanted: int) -> int:
        """Round `wanted` up to a batch size divisible by devices and processes."""
        shards = np.prod([self.mesh.shape[axis] for axis in parallel.BATCH_AXES])
        return _round_up(wanted, int(np.lcm(shards, jax.process_count())))


class Encoder(ImageTower):
    """Embeds images, texts and class names into the joint space."""

    model: TwoTower

    def __init__(self, model: TwoTower, tokenizer: Tokenizer, mesh: Mesh) -> None:
        """Wrap the parts of a run; compilation happens at the first use."""
        super().__init__(model, mesh)
        self.tokenizer = tokenizer
        compiled = functools.partial(jax.jit, out_shardings=parallel.replicated(mesh))
        self.image_embeddings = compiled(self._image_embeddings)
        self.token_embeddings = compiled(self._token_embeddings)

    def _image_embeddings(
        self, variables: Params, images: UInt8[Array, "B H W 3"]
    ) -> Float[Array, "B D"]:
        return encode_images(self.model, variables, normalize(images))[0]

    def _token_embeddings(
        self, variables: Params, tokens: Int[Array, "*batch T"]
    ) -> Float[Array, "*batch D"]:
        flat = tokens.reshape(-1, tokens.shape[-1])
        embeddings: Any = self.model.apply(variables, flat, method="encode_text")
        return embeddings.reshape(*tokens.shape[:-1], -1)

    def text_embeddings(self, variables: Params, texts: Sequence[str]) -> Float[np.ndarray, "N D"]:
        """Return unnormalised joint embeddings of texts, which must be equal on all processes."""
        # In steps of 8, so that few batch sizes are compiled.
        size = min(_TEXTS_AT_ONCE, _round_up(len(texts), 8))
        # Padding doesn't affect the features, and most texts are much shorter than the context.
        tokens = trim(self.tokenizer([*texts, *[texts[-1]] * (-len(texts) % size)]))
        parts = [
            np.asarray(self.token_embeddings(variables, tokens[i : i + size]))
            for i in range(0, len(tokens), size)
        ]
        return np.concatenate(parts)[: len(texts)]

    def class_embeddings(
        self, variables: Params, names: Sequence[str], prompts: Prompts
    ) -> Float[np.ndarray, "N *names D"]:
        """Return, for each class, the normalised mean of the unnormalised prompt embeddings.

        Args:
          variables: the model's parameters and statistics.
          names: class names; a class with several, "person|people|man", has a vector for each.
          prompts: templates with one `{}` for the name; or by class, with "" for the others.

        Returns:
          Float32 [N, D]; with several names for a class [N, M, D], M being the most of any class,
          where the others repeat their first name.

        Raises:
          ValueError: there are no classes or prompts, or a prompt has no `{}`.
        """
        if not names or not prompts:
            raise ValueError(f"{len(names)} class names and {len(prompts)} prompts: expected some")
        listed = expanded(names)
        texts = [
            [prompt.format(name) for prompt in _prompts_of(class_, prompts)]
            for class_, each in zip(names, listed, strict=True)
            for name in each
        ]
        embeddings = self.text_embeddings(variables, [text for each in texts for text in each])
        ends = np.cumsum([len(each) for each in texts])
        # Of embeddings that are not normalised, as published: longer ones weigh more. [N * M, D]
        means = np.stack([part.mean(axis=0) for part in np.split(embeddings, ends[:-1])])
        if len(listed[0]) > 1:
            means = means.reshape(len(names), len(listed[0]), -1)  # [N, M, D]
        return np.asarray(l2_normalize(jnp.asarray(means)))


def _prompts_of(class_: str, prompts: Prompts) -> Sequence[str]:
    """Return the templates of a class: its own, if any of its names has some."""
    if not isinstance(prompts, Mapping):
        found: Sequence[str] = prompts
        for prompt in found:
            if "{}" not in prompt:
                raise ValueError(f"prompt {prompt!r}: expected one {{}} where the name goes")
        return found
    keys = keys_of([class_])
    own = [texts for name, texts in prompts.items() if name and key_of(name) in keys]
    return own[0] if own else prompts[""]


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
