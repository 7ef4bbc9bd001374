"""Loss of the segment head: cross-entropy of the pixels' classes."""

import jax
import jax.numpy as jnp

from groupvit_jax.typing import Array, Float, Int, UInt8


def mixture_log_likelihood(
    maps: Float[Array, "B H W G"], logits: Float[Array, "B G N"], labels: Int[Array, "B H W"]
) -> Float[Array, "B H W"]:
    """Return the log-probability of each pixel's class under the mixture of its segments.

    A pixel belongs to segment g with probability `maps[..., g]`, and a pixel of segment g has class
    n with probability `softmax(logits[g])[n]`, so the pixel has class n with the sum of the
    products over g. Averaging logits instead would be another model, and would need all classes of
    every pixel at once: [B, H, W, N] in place of [B, H, W, G].

    Computed as a log-sum-exp, so that value and gradient stay finite if a segment has no share of a
    pixel or gives its class a vanishing probability.

    Args:
      maps: soft assignment; sums to one over the segments.
      logits: class logits of each segment.
      labels: class of each pixel, 0 to N - 1.
    """
    B, H, W, G = maps.shape
    log_classes = jax.nn.log_softmax(logits.astype(jnp.float32))
    picked = jnp.take_along_axis(log_classes, labels.reshape(B, 1, H * W), axis=2)  # [B, G, H W]
    picked = jnp.moveaxis(picked, 1, 2).reshape(B, H, W, G)
    has_share = maps > 0
    # The inner `where` keeps the unused branch finite: its gradient, times 0, would be NaN.
    log_share = jnp.where(has_share, jnp.log(jnp.where(has_share, maps, 1.0)), -jnp.inf)
    return jax.nn.logsumexp(log_share + picked, axis=-1)


def segmentation_loss(
    maps: Float[Array, "B H W G"],
    logits: Float[Array, "B G N"],
    mask: UInt8[Array, "B H W"],
    ignored: int = 255,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the mean cross-entropy of labelled pixels, and the share of labelled pixels.

    Args:
      maps: soft assignment of the batch's pixels.
      logits: class logits of each segment.
      mask: class of each pixel; pixels with `ignored` or a value that is no class are left out. A
        batch without labelled pixels has loss 0.
      ignored: mask value of unlabelled pixels.
    """
    counts = (mask != ignored) & (mask < logits.shape[-1])
    # 255 is no class: any class will do where the loss is masked afterwards.
    labels = jnp.where(counts, mask, 0).astype(jnp.int32)
    total = jnp.where(counts, -mixture_log_likelihood(maps, logits, labels), 0.0).sum()
    return total / jnp.maximum(counts.sum(), 1), counts.mean()
