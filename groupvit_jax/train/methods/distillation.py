"""Self-distillation: the average of the parameters teaches what a small crop shows."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from groupvit_jax.models import preprocess
from groupvit_jax.models.layers import example_keys
from groupvit_jax.typing import Array, Batch, Float, PyTree

# Of the image's area; local crops, as in DINO (arXiv 2104.14294) and SILC (arXiv 2310.13355).
_AREA = (0.1, 0.5)
# Folded into the keys of other noise, see `mixing`.
_CROPS = 2**31 - 2


def encode_crops(
    model: nn.Module, params: PyTree, keys: PyTree, rows: Batch
) -> Float[Array, "B 1 C"]:
    """Return the student's image embedding of a small crop of each image.

    Args:
      model: a model with `TwoTower`'s image encoder.
      params: parameters of the model.
      keys: the step's keys, from `noise_keys`.
      rows: "image" and "noise_ids".
    """
    images, ids = preprocess.normalize(rows["image"]), rows["noise_ids"]
    drawn = example_keys(jax.random.fold_in(keys["random_erasing"], _CROPS), ids)
    features: Any = model.apply(
        {"params": params},
        preprocess.random_crops(drawn, images, _AREA),
        noise_ids=ids,
        rngs={name: jax.random.fold_in(keys[name], _CROPS) for name in ("drop_path", "gumbel")},
        method=lambda tower, *images, **noise: tower.image_encoder(*images, **noise),
    )
    return features.embedding[:, None]


def encode_teacher(
    model: nn.Module, params: PyTree, keys: PyTree, rows: Batch
) -> Float[Array, "B C"]:
    """Return the teacher's embedding of each whole image, without noise.

    Args:
      model: see `encode_crops`.
      params: the average of the parameters.
      keys: not used; the function is called like `contrastive_task.encode_examples`.
      rows: "image".
    """
    del keys
    images = preprocess.normalize(rows["image"])
    features: Any = model.apply(
        {"params": params}, images, method=lambda tower, images: tower.image_encoder(images)
    )
    return features.embedding


def project_teacher(
    model: nn.Module, average: PyTree, embedding: Float[Array, "B C"]
) -> Float[Array, "B D"]:
    """Return the teacher's joint embeddings, with the average of BatchNorm's statistics."""
    found: Any = model.apply(
        average, embedding, method=lambda tower, x: tower.image_projector(x, train=False)
    )
    return jnp.asarray(found)
