"""Pooling by the most active tokens of each channel (LoDA of SimSeg, CVPR 2023)."""

import jax
import jax.numpy as jnp

from groupvit_jax.losses import pairwise
from groupvit_jax.losses.contrastive import contrastive_losses
from groupvit_jax.losses.pairwise import Metrics, Pairing
from groupvit_jax.typing import Array, Bool, Float, Int


def top_mean(
    tokens: Float[Array, "B S D"], mask: Bool[Array, "B S"], count: int
) -> Float[Array, "B D"]:
    """Return for each channel the mean of its largest values over the unmasked tokens.

    Args:
      tokens: of each example.
      mask: which of them count; without any, the result is zero.
      count: number of values; all of those that there are, if fewer.
    """
    # `top_k` works along the last axis: [B, D, S].
    channels = jnp.moveaxis(jnp.where(mask[:, :, None], tokens, -jnp.inf), 1, 2)
    best, _ = jax.lax.top_k(channels, min(count, tokens.shape[1]))  # [B, D, k]
    # With fewer than `count` tokens the rest of `best` is the mask's -inf.
    counts = jnp.isfinite(best)
    total = jnp.where(counts, best, 0.0).sum(axis=2)
    return total / jnp.maximum(counts.sum(axis=2), 1)


def pooled_loss(
    segments: Float[Array, "B G D"],
    words: Float[Array, "B W D"],
    word_mask: Bool[Array, "B W"],
    captions: Float[Array, "B D"],
    logit_scale: Float[Array, ""],
    count: int,
    pairing: Pairing = pairwise.ON_ONE_DEVICE,
    ids: Int[Array, "B"] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Match images with texts by pooled parts: InfoNCE over the global batch.

    An image is the mean of the `count` largest values of each channel over its segments, a text the
    largest over its words. Only the most active parts then get a gradient, not all of them alike.

    Args:
      segments: embeddings of the examples' segments; within `jax.shard_map` those of this device.
      words: embeddings of each example's words.
      word_mask: mask of the words present.
      captions: embeddings that stand in for texts without words.
      logit_scale: logarithm of the inverse temperature.
      count: values of a channel.
      pairing: where and how it is computed.
      ids: identities of the texts; None: all are different.

    Returns:
      The value over the global batch and its metrics, see `contrastive_losses`.
    """
    image = top_mean(segments, jnp.ones(segments.shape[:2], bool), count)
    has_words = word_mask.any(axis=1, keepdims=True)
    text = jnp.where(has_words, top_mean(words, word_mask, 1), captions)
    given = None if ids is None else [ids[:, None]]
    [found] = contrastive_losses(image, [text[:, None]], [logit_scale], pairing=pairing, ids=given)
    return found
