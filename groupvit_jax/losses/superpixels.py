"""Superpixel consistency: the patches of a region of like colour belong to the same groups."""

import jax
import jax.numpy as jnp

from groupvit_jax.losses.pairwise import Metrics
from groupvit_jax.typing import Array, Float, Int


def superpixel_loss(
    maps: Float[Array, "B L G"], superpixels: Int[Array, "B L"]
) -> tuple[Float[Array, ""], Metrics]:
    """Return the consistency of patches with their superpixels (SegCLIP, arXiv 2211.14813).

    With A the assignment of the patches and A' its mean over each patch's superpixel, the loss is
    half the symmetric Kullback-Leibler divergence of `softmax(A')` and `softmax(A)` over the
    groups, divided by the numbers of images, patches and groups.

    Args:
      maps: soft assignment of the patches.
      superpixels: a number for each patch, the same for those of one superpixel.

    Returns:
      The loss, and its metric `agreement`, the share of patches whose best group is that of their
      superpixel.
    """
    same = (superpixels[:, :, None] == superpixels[:, None, :]).astype(jnp.float32)
    # In bfloat16, a TPU's default, a superpixel of one patch would differ from its patch.
    means = jnp.einsum("bpq,bqg->bpg", same, maps, precision=jax.lax.Precision.HIGHEST)
    means /= same.sum(axis=2, keepdims=True)
    log_mean, log_own = jax.nn.log_softmax(means), jax.nn.log_softmax(maps)
    # KL(p || q) + KL(q || p) = sum (p - q) (log p - log q)
    divergence = (jnp.exp(log_mean) - jnp.exp(log_own)) * (log_mean - log_own)
    agreement = (means.argmax(axis=2) == maps.argmax(axis=2)).mean()
    return divergence.mean() / 2, {"agreement": agreement}
