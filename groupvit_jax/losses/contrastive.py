"""Contrastive losses over the global batch (arXiv 2202.11094, section 3.2; 2303.15343).

Every device holds the embeddings of its own examples and compares them with everyone's in blocks,
so that no more than `[own images, block of texts]` logits exist at once. Backward, the logits are
computed anew; with everyone's softmax sums at hand a device forms the whole gradient of its own
embeddings, and no gradient has to travel.
"""

import functools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from groupvit_jax.losses import pairwise
from groupvit_jax.losses.pairwise import Both, Comparison, Metrics, Side, product
from groupvit_jax.typing import Array, Bool, Float, Int, UInt

MAX_LOSSES_WITH_IDS = 2
# How an image is compared with a text of another image that says the same as its own.
IDENTICAL_TEXTS = ("negatives", "positives")


def contrastive_losses(
    image: Float[Array, "B D"],
    texts: Sequence[Float[Array, "B _ D"]],
    logit_scales: Sequence[Float[Array, ""]],
    biases: Sequence[Float[Array, ""]] | None = None,
    comparison: Comparison = pairwise.ON_ONE_DEVICE,
    ids: Sequence[Int[Array, "B _"]] | None = None,
) -> list[tuple[Float[Array, ""], Metrics]]:
    """Matches images with each kind of their texts: captions, and prompts (the multi-label loss).

    A text is a positive of its image. With ids it is one of every image that has a text of the
    same id in the same loss, too. Be `P[i, t]` 1 where text t is a positive of image i, else 0.
    "softmax" is the mean of two cross-entropies: of each image over all texts against
    `P[i, t] / sum_t P[i, t]`, and of each text over all images against `P[i, t] / sum_i P[i, t]`.
    Without ids, with K texts an image, that is 1/K on each of its own, and 1 on the text's image.
    "sigmoid" (SigLIP) tells for every pair of image and text whether they belong together, by
    `-log sigmoid((2 P[i, t] - 1) logit)` summed over all pairs, divided by B K.

    Args:
      image: embeddings of the examples, not normalised; within `jax.shard_map` of the device's.
      texts: for each loss the embeddings of every image's K texts, not normalised.
      logit_scales: for each loss the logarithm of the inverse temperature.
      biases: for each sigmoid loss what is added to its logits.
      comparison: the kind of loss and where and how it is computed.
      ids: for each of at most two losses what tells its texts apart, from 0 to 2^31 - 1; None: each
        text is another one, even if it says the same.

    Returns:
      For each loss its value over the global batch and the metrics `image_to_text_accuracy` (the
      best text is one of the image's positives), `text_to_image_accuracy` and `temperature`.

    Raises:
      ValueError: there are ids for more than two losses.
    """
    image = pairwise.l2_normalize(image)
    scales = [pairwise.clipped_scale(logit_scale) for logit_scale in logit_scales]
    texts = [scale * pairwise.l2_normalize(text) for text, scale in zip(texts, scales, strict=True)]
    if comparison.kind == "sigmoid":
        # The bias is one more product: 1 of the image times the bias of the text.
        image = jnp.pad(image, ((0, 0), (0, 1)), constant_values=1.0)
        texts = [_append(text, bias) for text, bias in zip(texts, biases or (), strict=True)]
    stacked = jnp.concatenate(texts, axis=1)
    position = pairwise.global_positions(comparison, len(image))
    own = Examples(image, stacked, position, None if ids is None else _told_apart(ids))
    totals = _compare(comparison, *own)
    own_logits = product("bd,bnd->bn", image, stacked) if ids is None else None
    results, first = [], 0
    for text, scale in zip(texts, scales, strict=True):
        part = slice(first, first := first + text.shape[1])
        here, own_here = jax.tree.map(lambda x, part=part: x[:, part], (totals, own_logits))
        value = pairwise.global_mean(comparison, _loss(comparison, here, own_here))
        metrics = _accuracies(comparison, here) | {"temperature": 1 / scale}
        results.append((value, metrics))
    return results


def _append(text: Float[Array, "B K D"], bias: Float[Array, ""]) -> Float[Array, "B K E"]:
    column = jnp.broadcast_to(bias.astype(jnp.float32), (*text.shape[:2], 1))
    return jnp.concatenate([text, column], axis=-1)


def _told_apart(ids: Sequence[Int[Array, "B _"]]) -> UInt[Array, "B N"]:
    """Returns the ids of all losses, those of different losses being different."""
    if len(ids) > MAX_LOSSES_WITH_IDS:
        raise ValueError(f"ids of {len(ids)} losses found, expected at most {MAX_LOSSES_WITH_IDS}")
    return jnp.concatenate([2 * x.astype(jnp.uint32) + i for i, x in enumerate(ids)], axis=1)


def _loss(
    comparison: Comparison, totals: Both, own_logits: Float[Array, "B K"] | None
) -> Float[Array, "B K"]:
    """Returns what each text of this device adds to the loss's mean."""
    image, text = totals.image, totals.text
    if comparison.kind == "sigmoid":
        return (image.total + text.total) / 2  # the same sum by rows and by columns
    image_total = jax.nn.logsumexp(image.total, axis=1, keepdims=True)
    if own_logits is not None:
        return (image_total + text.total) / 2 - own_logits
    assert image.positives is not None
    assert text.positives is not None
    of_image, number = (x.sum(axis=1, keepdims=True) for x in image.positives)
    of_text = text.positives.total / text.positives.number
    return (image_total - of_image / number + text.total - of_text) / 2


def _accuracies(comparison: Comparison, totals: Both) -> Metrics:
    best = totals.image.best.argmax(axis=1, keepdims=True)
    image_to_text = jnp.take_along_axis(totals.image.hit, best, axis=1)
    hits = {"image_to_text_accuracy": image_to_text, "text_to_image_accuracy": totals.text.hit}
    return {name: pairwise.global_mean(comparison, jnp.float32(hit)) for name, hit in hits.items()}


class Examples(NamedTuple):
    """Embeddings that are ready to be multiplied, and what tells examples and texts apart."""

    image: Float[Array, "B D"]
    text: Float[Array, "B N D"]
    position: Int[Array, "B"]
    ids: UInt[Array, "B N"] | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _compare(
    comparison: Comparison,
    image: Float[Array, "B D"],
    text: Float[Array, "B N D"],
    position: Int[Array, "B"],
    ids: UInt[Array, "B N"] | None,
) -> Both:
    """Compares the device's images with the texts of all devices, and its texts with all images."""
    return _compare_forward(comparison, image, text, position, ids)[0]


def _compare_forward(
    comparison: Comparison, image: Array, text: Array, position: Array, ids: Array | None
) -> tuple[Both, Any]:
    kind, own = comparison.kind, Examples(image, text, position, ids)
    everyone = pairwise.gather(comparison, own)

    def add(totals: Both, block: Examples) -> Both:
        logits, same = _logits(own, block), _same(own, block)
        return Both(
            *(pairwise.add_logits(kind, *x) for x in zip(same, totals, logits, strict=True))
        )

    # Made of the text, so that they are known to differ among devices.
    none = pairwise.no_totals(text[..., 0], count_positives=ids is not None and kind == "softmax")
    totals = pairwise.fold(comparison, add, Both(none, none), everyone)
    totals = Both(*(pairwise.finished(kind, part) for part in totals))
    return totals, (own, everyone, totals.image.total, totals.text.total)


def _compare_backward(
    comparison: Comparison, residuals: Any, gradients: Both
) -> tuple[Array | None, ...]:
    own, everyone, image_total, text_total = residuals
    image_side = pairwise.side(image_total, gradients.image)
    text_side = pairwise.side(text_total, gradients.text)
    others = (everyone, *pairwise.gather(comparison, (image_side, text_side)))

    def add(sums: tuple[Array, Array], block: tuple[Examples, Side, Side]) -> tuple[Array, Array]:
        examples, block_image_side, block_text_side = block
        by_image, by_text = _logits(own, examples)
        text_same, image_same = _same(own, examples)
        weights = functools.partial(_weights, comparison.kind)
        by_image = weights(text_same, by_image, image_side, block_text_side)
        by_text = weights(image_same, by_text, text_side, block_image_side)
        image = product("bnc,cnd->bd", by_image, examples.text)
        text = product("bnc,cd->bnd", by_text, examples.image)
        return sums[0] + image, sums[1] + text

    sums = (jnp.zeros_like(own.image), jnp.zeros_like(own.text))
    return *pairwise.fold(comparison, add, sums, others), None, None


_compare.defvjp(_compare_forward, _compare_backward)


def _logits(own: Examples, block: Examples) -> tuple[Float[Array, "B N C"], Float[Array, "B N C"]]:
    """Returns own images by the block's texts, and own texts by the block's images."""
    return (
        product("bd,cnd->bnc", own.image, block.text),
        product("bnd,cd->bnc", own.text, block.image),
    )


def _same(own: Examples, block: Examples) -> tuple[Bool[Array, "B #N C"], Bool[Array, "B #N C"]]:
    """Returns which of the block's texts are own images' positives, and the other way round."""
    if own.ids is None or block.ids is None:
        same = own.position[:, None, None] == block.position
        return same, same
    own_ids, block_ids = own.ids[..., None], block.ids.T
    # One after the other: all of an image's texts by all of another's would be one more axis.
    each = range(len(block_ids))
    of_image = (own_ids[:, n : n + 1] == block_ids for n in each)
    of_text = (own_ids == block_ids[n] for n in each)
    return functools.reduce(operator.or_, of_image), functools.reduce(operator.or_, of_text)


def _weights(
    kind: str, same: Bool[Array, "B #N C"], logits: Float[Array, "B N C"], own: Side, other: Side
) -> Float[Array, "B N C"]:
    """Returns the gradient of the loss by the logits."""
    own = jax.tree.map(lambda x: x[..., None], own)
    other = jax.tree.map(jnp.transpose, other)
    if kind == "sigmoid":
        return (own.gradient + other.gradient) * (jax.nn.sigmoid(logits) - same)
    by_own, by_other = (pairwise.softmax_weights(same, logits, side) for side in (own, other))
    return by_own + by_other
