"""Images mixed with those of their neighbours in the batch, for `losses.mixed_patch_loss`."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from groupvit_jax import losses
from groupvit_jax.models import preprocess
from groupvit_jax.models.layers import example_keys
from groupvit_jax.train.forward import patch_groups
from groupvit_jax.train.step import Metrics
from groupvit_jax.typing import Array, Batch, Float, Int, Key, PyTree, TwoTowerOutput, UInt8

# Folded into the keys of other noise, whose draws stay as they are without mixing. No example has
# this number, so no key comes twice.
_MIXING = 2**31 - 1
_OWN, _OTHER = 0, 1


def neighbours(x: Float[Array, "B *S"] | UInt8[Array, "B *S"]) -> Array:
    """Return for each example the one before it in the global batch."""
    return jnp.roll(x, 1, axis=0)


def mix_images(
    key: Key[Array, ""],
    noise_ids: Int[Array, "B"],
    images: UInt8[Array, "B H W 3"],
    patch_size: int,
    cell: int,
) -> tuple[UInt8[Array, "B H W 3"], Int[Array, "B h w"]]:
    """Replace about half of each image by its neighbour's pixels at the same place.

    Args:
      key: of the step.
      noise_ids: positions of the examples in the global batch.
      images: the global batch.
      patch_size: side of a patch, which divides the images'.
      cell: side of the squares that are taken whole, in patches.

    Returns:
      The mixed images, and for each of their patches whether it is the example's own (0) or its
      neighbour's (1).
    """
    h, w = (side // patch_size for side in images.shape[1:3])
    keys = example_keys(jax.random.fold_in(key, _MIXING), noise_ids)
    shape = (-(-h // cell), -(-w // cell))
    cells = jax.vmap(lambda key: jax.random.bernoulli(key, shape=shape))(keys)
    owner = jnp.repeat(jnp.repeat(cells, cell, axis=1), cell, axis=2)[:, :h, :w]
    pixels = jnp.repeat(jnp.repeat(owner, patch_size, axis=1), patch_size, axis=2)
    mixed = jnp.where(pixels[..., None], neighbours(images), images)
    return mixed, jnp.where(owner, _OTHER, _OWN)


def encode_mixed(
    model: nn.Module, params: PyTree, keys: PyTree, rows: Batch
) -> dict[str, Float[Array, "B _ _"]]:
    """Return the segments of the mixed images, and the groups of their patches.

    Args:
      model: a model with `TwoTower`'s image encoder.
      params: parameters of the model.
      keys: the step's keys, from `noise_keys`.
      rows: "mixed", images, and "noise_ids".

    Returns:
      "mixed" [B, G, C] and "maps" [B, L, G], the soft assignments of the last grouping stage.
    """
    images = preprocess.normalize(rows["mixed"])
    features: Any = model.apply(
        {"params": params},
        images,
        noise_ids=rows["noise_ids"],
        rngs={name: jax.random.fold_in(keys[name], _MIXING) for name in ("drop_path", "gumbel")},
        method=lambda tower, *images, **noise: tower.image_encoder(*images, **noise),
    )
    return {"mixed": features.segments, "maps": patch_groups(features)}


def mixed_loss(
    output: TwoTowerOutput,
    segments: Float[Array, "B G D"],
    maps: Float[Array, "B L G"],
    owner: Int[Array, "B h w"],
) -> tuple[Float[Array, ""], Metrics]:
    """Return the loss of the mixed images and its metrics.

    Args:
      output: of the model for the global batch.
      segments: embeddings of the mixed images' segments.
      maps: from `encode_mixed`.
      owner: from `mix_images`.
    """
    captions = output.text[:, 0]
    texts = jnp.stack([captions, neighbours(captions)], axis=1)
    of_patches = maps.reshape(*owner.shape, -1)
    return losses.mixed_patch_loss(of_patches, segments, texts, owner, output.logit_scale)
