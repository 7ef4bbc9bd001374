"""Nouns of a caption against a bank of frequent nouns, whose embeddings are frozen."""

import jax
import jax.numpy as jnp

from groupvit_jax.losses.pairwise import Metrics, clipped_scale, l2_normalize, product
from groupvit_jax.typing import Array, Float, Int


def noun_bank_loss(
    images: Float[Array, "B D"],
    bank: Float[Array, "N D"],
    nouns: Int[Array, "B M"],
    logit_scale: Float[Array, ""],
) -> tuple[Float[Array, ""], Metrics]:
    """Return the cross-entropy of images with their captions' nouns (TagAlign, arXiv 2312.14149).

    The prediction is `softmax_n(scale * cos(image, bank[n]))` over the whole bank, the target the
    l1-normalised multi-hot vector of the caption's nouns, so neither positives nor negatives depend
    on the batch. The loss is the mean over the images with a noun in the bank.

    Args:
      images: embeddings, not normalised.
      bank: embeddings of the nouns, of length one; they get no gradient.
      nouns: rows of the bank that the caption names, each once, then -1.
      logit_scale: logarithm of the inverse temperature.

    Returns:
      The loss, and its metrics `accuracy`, the share of images whose likeliest noun is one of
      theirs, and `images_with_nouns`, the share that counts.
    """
    scaled = clipped_scale(logit_scale) * l2_normalize(images)
    logits = product("bd,nd->bn", scaled, jax.lax.stop_gradient(bank))
    present = nouns >= 0
    own = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(nouns, 0), axis=1)
    number = present.sum(axis=1)
    has_nouns = number > 0
    by_image = -jnp.where(present, own, 0.0).sum(axis=1) / jnp.maximum(number, 1)
    hit = ((nouns == logits.argmax(axis=1, keepdims=True)) & present).any(axis=1)
    total = jnp.maximum(has_nouns.sum(), 1)
    metrics = {"accuracy": hit.sum() / total, "images_with_nouns": has_nouns.mean()}
    return by_image.sum() / total, metrics
