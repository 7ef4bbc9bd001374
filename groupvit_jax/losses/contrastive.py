"""Contrastive losses over the global batch (arXiv 2202.11094, section 3.2; 2303.15343).

Each device holds the embeddings of its own examples and compares them with the global batch block
by block, so that at most `[own images, block of texts]` logits exist at once. The backward pass is
written by hand for two reasons. JAX's would store every block's logits, which is the memory that
blocks save; here they are recomputed. And it would send gradients of embeddings back to their
devices; with the log-sum-exps of all devices gathered, a device computes the whole gradient of its
own embeddings.
"""

import functools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from groupvit_jax.losses import pairwise
from groupvit_jax.losses.pairwise import Both, Metrics, Pairing, Side, product
from groupvit_jax.typing import Array, Bool, Float, Int, UInt

MAX_LOSSES_WITH_IDS = 2
# Role of a text of another image that is identical to one of the image's own.
IDENTICAL_TEXTS = ("negatives", "positives")


def contrastive_losses(
    image: Float[Array, "B D"],
    texts: Sequence[Float[Array, "B _ D"]],
    logit_scales: Sequence[Float[Array, ""]],
    biases: Sequence[Float[Array, ""]] | None = None,
    pairing: Pairing = pairwise.ON_ONE_DEVICE,
    ids: Sequence[Int[Array, "B _"]] | None = None,
) -> list[tuple[Float[Array, ""], Metrics]]:
    """Match images with each kind of their texts: captions, and prompts (the multi-label loss).

    A text is a positive of its image; with ids, of every image that has a text of the same id in
    the same loss. Let `P[i, t]` be 1 if text t is a positive of image i, else 0. "softmax" is the
    mean of two cross-entropies: of each image over all texts against `P[i, t] / sum_t P[i, t]`, and
    of each text over all images against `P[i, t] / sum_i P[i, t]`. Without ids, with K texts an
    image, that is 1/K on each of its own, and 1 on the text's image. "sigmoid" (SigLIP) classifies
    every pair of image and text as matching or not, by `-log sigmoid((2 P[i, t] - 1) logit)` summed
    over all pairs, divided by B K.

    Args:
      image: embeddings, not normalised; within `jax.shard_map` those of this device's examples.
      texts: for each loss, the embeddings of every image's K texts, not normalised.
      logit_scales: for each loss, the logarithm of the inverse temperature.
      biases: for each sigmoid loss, the bias of its logits.
      pairing: kind of loss, and where and how it is computed.
      ids: for each of at most two losses, the identity of its texts, from 0 to 2^31 - 1; None:
        every text counts as different.

    Returns:
      For each loss its value over the global batch and its metrics: `image_to_text_accuracy` (the
      best text is a positive), `text_to_image_accuracy` and `temperature`.

    Raises:
      ValueError: there are ids for more than two losses.
    """
    image = pairwise.l2_normalize(image)
    scales = [pairwise.clipped_scale(logit_scale) for logit_scale in logit_scales]
    # The scale goes into the texts: B x K x D products instead of one for each of B x B K logits.
    texts = [scale * pairwise.l2_normalize(text) for text, scale in zip(texts, scales, strict=True)]
    if pairing.kind == "sigmoid":
        # The bias as one more channel, 1 times the bias: the products need no second addition.
        image = jnp.pad(image, ((0, 0), (0, 1)), constant_values=1.0)
        texts = [_append(text, bias) for text, bias in zip(texts, biases or (), strict=True)]
    # Captions and prompts in one product: larger products keep a matrix unit busier.
    stacked = jnp.concatenate(texts, axis=1)  # [B, N, D]
    position = pairwise.global_positions(pairing, len(image))
    own = Examples(image, stacked, position, None if ids is None else _told_apart(ids))
    totals = _compare(pairing, *own)
    # Without ids an image's only positives are its own texts: B x N logits, computed apart, spare
    # a second reduction over every block.
    own_logits = product("bd,bnd->bn", image, stacked) if ids is None else None
    results, first = [], 0
    for text, scale in zip(texts, scales, strict=True):
        part = slice(first, first := first + text.shape[1])
        here, own_here = jax.tree.map(lambda x, part=part: x[:, part], (totals, own_logits))
        value = pairwise.global_mean(pairing, _loss(pairing, here, own_here))
        metrics = _accuracies(pairing, here) | {"temperature": 1 / scale}
        results.append((value, metrics))
    return results


def _append(text: Float[Array, "B K D"], bias: Float[Array, ""]) -> Float[Array, "B K E"]:
    column = jnp.broadcast_to(bias.astype(jnp.float32), (*text.shape[:2], 1))
    return jnp.concatenate([text, column], axis=-1)  # [B, K, D + 1]


def _told_apart(ids: Sequence[Int[Array, "B _"]]) -> UInt[Array, "B N"]:
    """Return the ids of all losses, made distinct between losses."""
    if len(ids) > MAX_LOSSES_WITH_IDS:
        raise ValueError(f"ids of {len(ids)} losses found, expected at most {MAX_LOSSES_WITH_IDS}")
    # Even numbers for the captions, odd ones for the prompts: a caption that equals some image's
    # prompt is not its positive.
    return jnp.concatenate([2 * x.astype(jnp.uint32) + i for i, x in enumerate(ids)], axis=1)


def _loss(
    pairing: Pairing, totals: Both, own_logits: Float[Array, "B K"] | None
) -> Float[Array, "B K"]:
    """Return the contribution of each of this device's texts to the mean."""
    image, text = totals.image, totals.text
    if pairing.kind == "sigmoid":
        # The same sum by rows and by columns; the mean gives both directions their gradient.
        return (image.total + text.total) / 2
    # The totals of an image are by its n-th texts; its softmax runs over all N x B texts.
    image_total = jax.nn.logsumexp(image.total, axis=1, keepdims=True)
    if own_logits is not None:
        return (image_total + text.total) / 2 - own_logits
    assert image.positives is not None
    assert text.positives is not None
    of_image, number = (x.sum(axis=1, keepdims=True) for x in image.positives)
    of_text = text.positives.total / text.positives.number
    return (image_total - of_image / number + text.total - of_text) / 2


def _accuracies(pairing: Pairing, totals: Both) -> Metrics:
    # An image's best text is the best of its N bests, one for each place of a text in its image.
    best = totals.image.best.argmax(axis=1, keepdims=True)
    image_to_text = jnp.take_along_axis(totals.image.hit, best, axis=1)
    hits = {"image_to_text_accuracy": image_to_text, "text_to_image_accuracy": totals.text.hit}
    return {name: pairwise.global_mean(pairing, jnp.float32(hit)) for name, hit in hits.items()}


class Examples(NamedTuple):
    """Normalised, scaled embeddings, with the identities of examples and texts."""

    image: Float[Array, "B D"]
    text: Float[Array, "B N D"]
    position: Int[Array, "B"]
    ids: UInt[Array, "B N"] | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _compare(
    pairing: Pairing,
    image: Float[Array, "B D"],
    text: Float[Array, "B N D"],
    position: Int[Array, "B"],
    ids: UInt[Array, "B N"] | None,
) -> Both:
    """Compare this device's images with all texts, and its texts with all images."""
    return _compare_forward(pairing, image, text, position, ids)[0]


def _compare_forward(
    pairing: Pairing, image: Array, text: Array, position: Array, ids: Array | None
) -> tuple[Both, Any]:
    kind, own = pairing.kind, Examples(image, text, position, ids)
    everyone = pairwise.gather(pairing, own)

    def add(totals: Both, block: Examples) -> Both:
        logits, same = _logits(own, block), _same(own, block)
        return Both(
            *(pairwise.add_logits(kind, *x) for x in zip(same, totals, logits, strict=True))
        )

    # Derived from the text, so that `shard_map` knows that they differ between devices.
    none = pairwise.no_totals(text[..., 0], count_positives=ids is not None and kind == "softmax")
    totals = pairwise.fold(pairing, add, Both(none, none), everyone)
    totals = Both(*(pairwise.finished(kind, part) for part in totals))
    return totals, (own, everyone, totals.image.total, totals.text.total)


def _compare_backward(
    pairing: Pairing, residuals: Any, gradients: Both
) -> tuple[Array | None, ...]:
    own, everyone, image_total, text_total = residuals
    image_side = pairwise.side(image_total, gradients.image)
    text_side = pairwise.side(text_total, gradients.text)
    others = (everyone, *pairwise.gather(pairing, (image_side, text_side)))

    def add(sums: tuple[Array, Array], block: tuple[Examples, Side, Side]) -> tuple[Array, Array]:
        examples, block_image_side, block_text_side = block
        by_image, by_text = _logits(own, examples)
        text_same, image_same = _same(own, examples)  # [B, #N, C] each
        weights = functools.partial(_weights, pairing.kind)
        by_image = weights(text_same, by_image, image_side, block_text_side)
        by_text = weights(image_same, by_text, text_side, block_image_side)
        image = product("bnc,cnd->bd", by_image, examples.text)
        text = product("bnc,cd->bnd", by_text, examples.image)
        return sums[0] + image, sums[1] + text

    sums = (jnp.zeros_like(own.image), jnp.zeros_like(own.text))
    # Positions and ids are integers and have no gradient.
    return *pairwise.fold(pairing, add, sums, others), None, None


_compare.defvjp(_compare_forward, _compare_backward)


def _logits(own: Examples, block: Examples) -> tuple[Float[Array, "B N C"], Float[Array, "B N C"]]:
    """Return the logits of own images with the block's texts, and of own texts with its images."""
    return (
        product("bd,cnd->bnc", own.image, block.text),
        product("bnd,cd->bnc", own.text, block.image),
    )


def _same(own: Examples, block: Examples) -> tuple[Bool[Array, "B #N C"], Bool[Array, "B #N C"]]:
    """Return the masks of positives: own images with the block's texts, and the reverse."""
    if own.ids is None or block.ids is None:
        same = own.position[:, None, None] == block.position
        return same, same
    own_ids, block_ids = own.ids[..., None], block.ids.T
    # In a loop over texts: at once, the masks would have one more axis of N texts.
    each = range(len(block_ids))
    of_image = (own_ids[:, n : n + 1] == block_ids for n in each)
    of_text = (own_ids == block_ids[n] for n in each)
    return functools.reduce(operator.or_, of_image), functools.reduce(operator.or_, of_text)


def _weights(
    kind: str, same: Bool[Array, "B #N C"], logits: Float[Array, "B N C"], own: Side, other: Side
) -> Float[Array, "B N C"]:
    """Return the gradient of the loss with respect to the logits.

    A logit is used in both directions, of which one was reduced on this device (`own`) and the
    other on the block's (`other`), so both parts are added.
    """
    own = jax.tree.map(lambda x: x[..., None], own)  # [B, N, 1]
    other = jax.tree.map(jnp.transpose, other)  # [C, N] -> [N, C]
    if kind == "sigmoid":
        # d/dx softplus(x) = sigmoid(x); for a positive, d/dx softplus(-x) = sigmoid(x) - 1.
        return (own.gradient + other.gradient) * (jax.nn.sigmoid(logits) - same)
    by_own, by_other = (pairwise.softmax_weights(same, logits, side) for side in (own, other))
    return by_own + by_other
