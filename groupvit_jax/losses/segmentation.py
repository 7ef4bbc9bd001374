"""Loss of a segment head, against the classes of pixels."""

import jax
import jax.numpy as jnp

from groupvit_jax.typing import Array, Float, Int, UInt8


def mixture_log_likelihood(
    maps: Float[Array, "B H W G"], logits: Float[Array, "B G N"], labels: Int[Array, "B H W"]
) -> Float[Array, "B H W"]:
    """Returns the log-probability of every pixel's class under the mixture of its segments.

    A pixel belongs to segment g with probability `maps[..., g]`, and a segment's pixels are of
    class n with probability `softmax(logits[g])[n]`; so the pixel is of class n with the sum of
    their products over g. (Summed logits would not be this model's likelihood, and would need all
    classes of every pixel at once; this needs each segment's probability of one.) Computed as a
    logarithm of a sum of exponentials, so that neither a segment that has no share of a pixel nor
    a class without hope makes it, or a gradient, infinite.

    Args:
      maps: soft assignment; sums to one over the segments.
      logits: of each segment's classes.
      labels: class of each pixel, 0 to N - 1.
    """
    B, H, W, G = maps.shape
    log_classes = jax.nn.log_softmax(logits.astype(jnp.float32))
    picked = jnp.take_along_axis(log_classes, labels.reshape(B, 1, H * W), axis=2)
    picked = jnp.moveaxis(picked, 1, 2).reshape(B, H, W, G)
    has_share = maps > 0
    log_share = jnp.where(has_share, jnp.log(jnp.where(has_share, maps, 1.0)), -jnp.inf)
    return jax.nn.logsumexp(log_share + picked, axis=-1)


def segmentation_loss(
    maps: Float[Array, "B H W G"],
    logits: Float[Array, "B G N"],
    mask: UInt8[Array, "B H W"],
    ignored: int = 255,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the pixels' mean cross-entropy (`mixture_log_likelihood`) and the share that counts.

    Args:
      maps: soft assignment of the batch's pixels.
      logits: of each segment's classes.
      mask: class of each pixel; `ignored`, and what is no class, has no part in the mean. A batch
        without any pixel that counts has the loss 0.
      ignored: the value that doesn't count.
    """
    counts = (mask != ignored) & (mask < logits.shape[-1])
    labels = jnp.where(counts, mask, 0).astype(jnp.int32)
    total = jnp.where(counts, -mixture_log_likelihood(maps, logits, labels), 0.0).sum()
    return total / jnp.maximum(counts.sum(), 1), counts.mean()
