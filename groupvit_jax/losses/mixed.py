"""Mixed images: every patch has to be found by the text of the image that it comes from."""

import jax
import jax.numpy as jnp

from groupvit_jax.losses.pairwise import Metrics, clipped_scale, l2_normalize, product
from groupvit_jax.losses.segmentation import mixture_log_likelihood
from groupvit_jax.typing import Array, Float, Int


def mixed_patch_loss(
    maps: Float[Array, "B h w G"],
    segments: Float[Array, "B G D"],
    texts: Float[Array, "B N D"],
    owner: Int[Array, "B h w"],
    logit_scale: Float[Array, ""],
) -> tuple[Float[Array, ""], Metrics]:
    """Return the mean cross-entropy of the patches' owners (after MixReorg, arXiv 2308.04829).

    A patch belongs to segment g with probability `maps[..., g]`, and a segment to text n with
    `softmax_n(scale * cos(segment, text n))`, so the mask of the mixing is what a segmentation of
    the mixed image into its texts should be.

    Args:
      maps: soft assignment of the mixed images' patches; sums to one over the segments.
      segments: embeddings of the mixed images' segments, not normalised.
      texts: embeddings of the texts of the N images that each was mixed from, not normalised.
      owner: which of them each patch comes from.
      logit_scale: logarithm of the inverse temperature.

    Returns:
      The loss, and its metric `accuracy`, the share of patches that their own text finds best.
    """
    scaled = clipped_scale(logit_scale) * l2_normalize(segments)
    logits = product("bgd,bnd->bgn", scaled, l2_normalize(texts))  # [B, G, N]
    # Probabilities are averaged over segments, as in the loss; logits would be another model.
    found = jnp.einsum("bhwg,bgn->bhwn", maps, jax.nn.softmax(logits)).argmax(axis=-1)
    loss = -mixture_log_likelihood(maps, logits, owner).mean()
    return loss, {"accuracy": (found == owner).mean()}
