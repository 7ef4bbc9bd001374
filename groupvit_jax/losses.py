"""Contrastive losses over the global batch (arXiv 2202.11094, section 3.2; 2303.15343).

Every device holds the embeddings of its own examples and compares them with everyone's in blocks,
so that no more than `[own images, block of texts]` logits exist at once. Backward, the logits are
computed anew; with everyone's softmax sums at hand a device forms the whole gradient of its own
embeddings, and no gradient has to travel.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from groupvit_jax.typing import Array, Bool, Float, Int, PyTree

KINDS = ("softmax", "sigmoid")
EXCHANGES = ("all_gather", "ring")
MAX_LOGIT_SCALE = 100.0
Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How images are compared with texts.

    Attributes:
      kind: "softmax" or "sigmoid".
      axes: mesh axes that the batch is divided over; within `jax.shard_map` only.
      exchange: "all_gather" holds everyone's embeddings, "ring" those of one device at a time.
      block_size: examples that the own ones are compared with at once; the largest divisor of their
        number that is no larger counts.
    """

    kind: str = "softmax"
    axes: tuple[str, ...] = ()
    exchange: str = "all_gather"
    block_size: int = 256


def l2_normalize(x: Float[Array, "*batch D"], epsilon: float = 1e-12) -> Float[Array, "*batch D"]:
    """Returns `x / max(||x||, epsilon)` over the last axis, in float32; zero stays zero."""
    x = x.astype(jnp.float32)
    # The square root of the clipped sum, so that the gradient at zero is finite.
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, epsilon**2))


def clipped_scale(logit_scale: Float[Array, ""]) -> Float[Array, ""]:
    """Returns what cosines are multiplied with, `min(exp(logit_scale), 100)`, in float32."""
    return jnp.minimum(jnp.exp(logit_scale.astype(jnp.float32)), MAX_LOGIT_SCALE)


def contrastive_losses(
    image: Float[Array, "B D"],
    texts: Sequence[Float[Array, "B _ D"]],
    logit_scales: Sequence[Float[Array, ""]],
    biases: Sequence[Float[Array, ""]] | None = None,
    comparison: Comparison = Comparison(),
) -> list[tuple[Float[Array, ""], Metrics]]:
    """Matches images with each kind of their texts: captions, and prompts (the multi-label loss).

    With K texts an image, "softmax" is the mean of two cross-entropies: of each image over all B K
    texts against 1/K on each of its own, and of each text over all images. "sigmoid" (SigLIP) tells
    for every pair of image and text whether they belong together, by `-log sigmoid(+-logit)`
    summed over all pairs, divided by B K.

    Args:
      image: embeddings of the examples, not normalised; within `jax.shard_map` of the device's.
      texts: for each loss the embeddings of every image's K texts, not normalised.
      logit_scales: for each loss the logarithm of the inverse temperature.
      biases: for each sigmoid loss what is added to its logits.
      comparison: the kind of loss and where and how it is computed.

    Returns:
      For each loss its value over the global batch and the metrics `image_to_text_accuracy` (the
      best text is one of the image's own), `text_to_image_accuracy` and `temperature`.
    """
    image = l2_normalize(image)
    scales = [clipped_scale(logit_scale) for logit_scale in logit_scales]
    texts = [scale * l2_normalize(text) for text, scale in zip(texts, scales, strict=True)]
    if comparison.kind == "sigmoid":
        # The bias is one more product: 1 of the image times the bias of the text.
        image = jnp.pad(image, ((0, 0), (0, 1)), constant_values=1.0)
        texts = [_append(text, bias) for text, bias in zip(texts, biases or (), strict=True)]
    stacked = jnp.concatenate(texts, axis=1)
    positions = _positions(comparison, len(image))
    totals = _compare(comparison, image, stacked, positions)
    own_logits = _product("bd,bnd->bn", image, stacked)
    results, first = [], 0
    for text, scale in zip(texts, scales, strict=True):
        part = slice(first, first := first + text.shape[1])
        here = jax.tree.map(lambda x, part=part: x[:, part], totals)
        value = _loss(comparison, here, own_logits[:, part])
        metrics = _accuracies(comparison, here, positions) | {"temperature": 1 / scale}
        results.append((_mean(comparison, value), metrics))
    return results


def _append(text: Float[Array, "B K D"], bias: Float[Array, ""]) -> Float[Array, "B K E"]:
    column = jnp.broadcast_to(bias.astype(jnp.float32), (*text.shape[:2], 1))
    return jnp.concatenate([text, column], axis=-1)


def _positions(comparison: Comparison, num_examples: int) -> Int[Array, "B"]:
    """Returns the positions in the global batch of this device's examples."""
    device = jax.lax.axis_index(comparison.axes) if comparison.axes else 0
    return device * num_examples + jnp.arange(num_examples)


def _mean(comparison: Comparison, x: Float[Array, "*S"]) -> Float[Array, ""]:
    return jax.lax.pmean(x.mean(), comparison.axes) if comparison.axes else x.mean()


class Totals(NamedTuple):
    """What came of comparing each item with all items of the other kind.

    Attributes:
      total: "softmax": logarithm of the sum of the exponentials; "sigmoid": sum of the losses.
      best: largest logit.
      owner: to which example of the global batch it belongs.
    """

    total: Float[Array, "B N"]
    best: Float[Array, "B N"]
    owner: Int[Array, "B N"]


class Both(NamedTuple):
    """Totals of images over the n-th texts of all examples, and of these texts over all images."""

    image: Totals
    text: Totals


def _loss(
    comparison: Comparison, totals: Both, own_logits: Float[Array, "B K"]
) -> Float[Array, "B K"]:
    """Returns what each text of this device adds to the loss's mean."""
    image, text = totals.image.total, totals.text.total
    if comparison.kind == "sigmoid":
        return (image + text) / 2  # the same sum by rows and by columns
    image = jax.nn.logsumexp(image, axis=1, keepdims=True)
    return (image + text) / 2 - own_logits


def _accuracies(comparison: Comparison, totals: Both, positions: Int[Array, "B"]) -> Metrics:
    own = positions[:, None]
    best = totals.image.best.argmax(axis=1, keepdims=True)
    image_to_text = jnp.take_along_axis(totals.image.owner, best, axis=1) == own
    return {
        "image_to_text_accuracy": _mean(comparison, image_to_text.astype(jnp.float32)),
        "text_to_image_accuracy": _mean(comparison, (totals.text.owner == own).astype(jnp.float32)),
    }


class Examples(NamedTuple):
    """Embeddings that are ready to be multiplied, and their positions in the global batch."""

    image: Float[Array, "B D"]
    text: Float[Array, "B N D"]
    position: Int[Array, "B"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _compare(
    comparison: Comparison,
    image: Float[Array, "B D"],
    text: Float[Array, "B N D"],
    position: Int[Array, "B"],
) -> Both:
    """Compares the device's images with the texts of all devices, and its texts with all images."""
    return _compare_forward(comparison, image, text, position)[0]


def _compare_forward(
    comparison: Comparison, image: Array, text: Array, position: Array
) -> tuple[Both, Any]:
    own = Examples(image, text, position)
    everyone = _gather(comparison, own)

    def add(totals: Both, block: Examples) -> Both:
        by_image, by_text = _logits(own, block)
        add_to = functools.partial(_add, comparison.kind, _same(own, block), block.position)
        return Both(add_to(totals.image, by_image), add_to(totals.text, by_text))

    # Made of the text, so that they are known to differ among devices.
    zero = jnp.zeros_like(text[..., 0])
    none = Totals(zero, zero - jnp.inf, zero.astype(position.dtype))
    totals = _fold(comparison, add, Both(none, none), everyone)
    if comparison.kind == "softmax":
        totals = Both(*(part._replace(total=part.best + jnp.log(part.total)) for part in totals))
    return totals, (own, everyone, totals.image.total, totals.text.total)


class Side(NamedTuple):
    """Totals of images or texts, and the gradients of the loss by them."""

    total: Float[Array, "B N"]
    gradient: Float[Array, "B N"]


def _compare_backward(
    comparison: Comparison, residuals: Any, gradients: Both
) -> tuple[Array, Array, None]:
    own, everyone, image_total, text_total = residuals
    image_side = Side(image_total, gradients.image.total)
    text_side = Side(text_total, gradients.text.total)
    others = (everyone, *_gather(comparison, (image_side, text_side)))

    def add(sums: tuple[Array, Array], block: tuple[Examples, Side, Side]) -> tuple[Array, Array]:
        examples, block_image_side, block_text_side = block
        by_image, by_text = _logits(own, examples)
        weights = functools.partial(_weights, comparison.kind, _same(own, examples))
        by_image = weights(by_image, image_side, block_text_side)
        by_text = weights(by_text, text_side, block_image_side)
        image = _product("bnc,cnd->bd", by_image, examples.text)
        text = _product("bnc,cd->bnd", by_text, examples.image)
        return sums[0] + image, sums[1] + text

    sums = (jnp.zeros_like(own.image), jnp.zeros_like(own.text))
    return *_fold(comparison, add, sums, others), None


_compare.defvjp(_compare_forward, _compare_backward)


def _product(equation: str, a: Array, b: Array) -> Array:
    # The default precision of accelerators keeps too few bits of a cosine times 100.
    return jnp.einsum(equation, a, b, precision=jax.lax.Precision.HIGHEST)


def _logits(own: Examples, block: Examples) -> tuple[Float[Array, "B N C"], Float[Array, "B N C"]]:
    """Returns own images by the block's texts, and own texts by the block's images."""
    return (
        _product("bd,cnd->bnc", own.image, block.text),
        _product("bnd,cd->bnc", own.text, block.image),
    )


def _same(own: Examples, block: Examples) -> Bool[Array, "B 1 C"]:
    return own.position[:, None, None] == block.position


def _add(
    kind: str,
    same: Bool[Array, "B 1 C"],
    positions: Int[Array, "C"],
    totals: Totals,
    logits: Float[Array, "B N C"],
) -> Totals:
    """Adds the logits of a block; the softmax's sum is kept relative to its largest term."""
    best = jnp.maximum(totals.best, logits.max(axis=-1))
    owner = jnp.where(best > totals.best, positions[logits.argmax(axis=-1)], totals.owner)
    if kind == "sigmoid":
        total = totals.total + jax.nn.softplus(jnp.where(same, -logits, logits)).sum(axis=-1)
    else:
        total = totals.total * jnp.exp(totals.best - best)
        total += jnp.exp(logits - best[..., None]).sum(axis=-1)
    return Totals(total, best, owner)


def _weights(
    kind: str, same: Bool[Array, "B 1 C"], logits: Float[Array, "B N C"], own: Side, other: Side
) -> Float[Array, "B N C"]:
    """Returns the gradient of the loss by the logits."""
    own = jax.tree.map(lambda x: x[..., None], own)
    other = jax.tree.map(jnp.transpose, other)
    if kind == "sigmoid":
        return (own.gradient + other.gradient) * (jax.nn.sigmoid(logits) - same)
    return own.gradient * jnp.exp(logits - own.total) + other.gradient * jnp.exp(
        logits - other.total
    )


def _gather(comparison: Comparison, rows: PyTree) -> PyTree:
    """Returns the rows of all devices; in a ring, the own ones that are to be sent round."""
    if not comparison.axes or comparison.exchange == "ring":
        return rows
    gather = functools.partial(jax.lax.all_gather, axis_name=comparison.axes, tiled=True)
    return jax.tree.map(gather, rows)


def _fold(
    comparison: Comparison, add: Callable[[Any, Any], Any], start: PyTree, rows: PyTree
) -> PyTree:
    """Returns `start` after `add` of the rows of all devices, block by block.

    Args:
      comparison: how the rows come here.
      add: a function of what there is and a block of rows.
      start: what there is at first.
      rows: what `_gather` returned.
    """
    if not comparison.axes or comparison.exchange == "all_gather":
        return _fold_blocks(comparison.block_size, add, start, rows)
    num_devices = jax.lax.axis_size(comparison.axes)
    ring = [(i, (i + 1) % num_devices) for i in range(num_devices)]

    def hop(state: tuple[PyTree, PyTree], _: None) -> tuple[tuple[PyTree, PyTree], None]:
        result, rows = state
        # Does not depend on the blocks' results: the next rows travel while these are compared.
        arriving = jax.tree.map(lambda x: jax.lax.ppermute(x, comparison.axes, ring), rows)
        return (_fold_blocks(comparison.block_size, add, result, rows), arriving), None

    return jax.lax.scan(hop, (start, rows), length=num_devices)[0][0]


def _fold_blocks(
    block_size: int, add: Callable[[Any, Any], Any], start: PyTree, rows: PyTree
) -> PyTree:
    num_rows = len(jax.tree.leaves(rows)[0])
    size = max(n for n in range(1, min(block_size, num_rows) + 1) if num_rows % n == 0)
    blocks = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), rows)
    return jax.lax.scan(lambda result, block: (add(result, block), None), start, blocks)[0]
