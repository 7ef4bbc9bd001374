"""Contrastive losses over the global batch (arXiv 2202.11094, section 3.2).

Plain functions of global arrays: where those are sharded over the batch, XLA places the
collectives, and the value does not depend on the number of devices.
"""

import jax
import jax.numpy as jnp

from groupvit_jax.typing import Array, Float

MAX_LOGIT_SCALE = 100.0
Metrics = dict[str, Float[Array, ""]]


def l2_normalize(x: Float[Array, "*batch D"], epsilon: float = 1e-12) -> Float[Array, "*batch D"]:
    """Returns `x / max(||x||, epsilon)` over the last axis, in float32; zero stays zero."""
    x = x.astype(jnp.float32)
    # The square root of the clipped sum, so that the gradient at zero is finite.
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, epsilon**2))


def clipped_scale(logit_scale: Float[Array, ""]) -> Float[Array, ""]:
    """Returns what cosines are multiplied with, `min(exp(logit_scale), 100)`, in float32."""
    return jnp.minimum(jnp.exp(logit_scale.astype(jnp.float32)), MAX_LOGIT_SCALE)


def global_contrastive_loss(
    image: Float[Array, "B D"], text: Float[Array, "B D"], logit_scale: Float[Array, ""]
) -> tuple[Float[Array, ""], Metrics]:
    """Matches each image with its caption among all captions, and the reverse.

    Mean of the image-to-text and the text-to-image cross-entropy.

    Args:
      image: embeddings of the global batch, not normalised.
      text: embeddings of the captions in the same order, not normalised.
      logit_scale: logarithm of the inverse temperature.

    Returns:
      The loss and the metrics `image_to_text_accuracy`, `text_to_image_accuracy`, `temperature`.
    """
    return multi_label_contrastive_loss(image, text[:, None], logit_scale)


def multi_label_contrastive_loss(
    image: Float[Array, "B D"], prompts: Float[Array, "B K D"], logit_scale: Float[Array, ""]
) -> tuple[Float[Array, ""], Metrics]:
    """Matches each image with its K prompts among all B K prompts, and each prompt with its image.

    Image to text: cross-entropy over all prompts against 1/K on each of the image's own. Text to
    image: each prompt's cross-entropy over all images. The loss is the mean of both.

    Args:
      image: embeddings of the global batch, not normalised.
      prompts: embeddings of each image's prompts, not normalised; K > 0.
      logit_scale: logarithm of the inverse temperature.

    Returns:
      The loss and the metrics `image_to_text_accuracy` (the best prompt is one of the image's
      own), `text_to_image_accuracy`, `temperature`.
    """
    B, K, D = prompts.shape
    scale = clipped_scale(logit_scale)
    image, prompts = l2_normalize(image), l2_normalize(prompts)
    # The default precision of accelerators keeps too few bits of a cosine times 100.
    logits = scale * jnp.matmul(
        image, prompts.reshape(B * K, D).T, precision=jax.lax.Precision.HIGHEST
    )
    owner = jnp.arange(B * K) // K
    own = owner == jnp.arange(B)[:, None]
    image_to_text, text_to_image = (
        -jnp.sum(jax.nn.log_softmax(logits, axis), where=own) / (B * K) for axis in (1, 0)
    )
    metrics = {
        "image_to_text_accuracy": (jnp.argmax(logits, axis=1) // K == jnp.arange(B)).mean(),
        "text_to_image_accuracy": (jnp.argmax(logits, axis=0) == owner).mean(),
        "temperature": 1 / scale,
    }
    return (image_to_text + text_to_image) / 2, metrics
