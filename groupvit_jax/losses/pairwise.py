"""Comparing the examples of a device with everyone's, block by block.

What the losses share: how rows travel between devices, and what is kept of the logits of a block.
"""

import dataclasses
import functools
from collections.abc import Callable
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


ON_ONE_DEVICE = Comparison()


def l2_normalize(x: Float[Array, "*batch D"], epsilon: float = 1e-12) -> Float[Array, "*batch D"]:
    """Returns `x / max(||x||, epsilon)` over the last axis, in float32; zero stays zero."""
    x = x.astype(jnp.float32)
    # The square root of the clipped sum, so that the gradient at zero is finite.
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, epsilon**2))


def clipped_scale(logit_scale: Float[Array, ""]) -> Float[Array, ""]:
    """Returns what cosines are multiplied with, `min(exp(logit_scale), 100)`, in float32."""
    return jnp.minimum(jnp.exp(logit_scale.astype(jnp.float32)), MAX_LOGIT_SCALE)


def product(equation: str, a: Array, b: Array) -> Array:
    """Returns the einsum in full float32.

    The default precision of accelerators keeps too few bits of a cosine times 100.
    """
    return jnp.einsum(equation, a, b, precision=jax.lax.Precision.HIGHEST)


def global_positions(comparison: Comparison, num_examples: int) -> Int[Array, "B"]:
    """Returns the positions in the global batch of this device's examples."""
    device = jax.lax.axis_index(comparison.axes) if comparison.axes else 0
    return device * num_examples + jnp.arange(num_examples)


def global_sum(comparison: Comparison, x: Float[Array, "*S"]) -> Float[Array, ""]:
    """Returns the sum over the examples of all devices."""
    return jax.lax.psum(x.sum(), comparison.axes) if comparison.axes else x.sum()


def global_mean(comparison: Comparison, x: Float[Array, "*S"]) -> Float[Array, ""]:
    """Returns the mean over the examples of all devices."""
    return jax.lax.pmean(x.mean(), comparison.axes) if comparison.axes else x.mean()


class Positives(NamedTuple):
    """What an item's positives come to.

    Attributes:
      total: sum of their logits.
      number: how many they are.
    """

    total: Float[Array, "B N"]
    number: Float[Array, "B N"]


class Totals(NamedTuple):
    """What came of comparing each item with all items of the other kind.

    Attributes:
      total: "softmax": logarithm of the sum of the exponentials; "sigmoid": sum of the losses.
      best: largest logit.
      hit: whether it is one of the item's positives.
      positives: of a "softmax"; None where the only ones are its own.
    """

    total: Float[Array, "B N"]
    best: Float[Array, "B N"]
    hit: Bool[Array, "B N"]
    positives: Positives | None = None


class Both(NamedTuple):
    """Totals of images over the n-th texts of all examples, and of these texts over all images."""

    image: Totals
    text: Totals


class Side(NamedTuple):
    """Totals of images or texts, and the gradients of the loss by them."""

    total: Float[Array, "B N"]
    gradient: Float[Array, "B N"]
    positive_gradient: Float[Array, "B N"] | None = None


def no_totals(like: Float[Array, "B N"], *, count_positives: bool) -> Totals:
    """Returns the totals of no logits; `like` says among which devices they differ."""
    zero = jnp.zeros_like(like)
    positives = Positives(zero, zero) if count_positives else None
    return Totals(zero, zero - jnp.inf, zero > 0, positives)


def add_logits(
    kind: str, same: Bool[Array, "B #N C"], totals: Totals, logits: Float[Array, "B N C"]
) -> Totals:
    """Adds the logits of a block; the softmax's sum is kept relative to its largest term.

    Args:
      kind: of the loss.
      same: which logits are of positives.
      totals: of the blocks before.
      logits: of the block.
    """
    best = jnp.maximum(totals.best, logits.max(axis=-1))
    first = logits.argmax(axis=-1)[..., None]
    found = jnp.take_along_axis(jnp.broadcast_to(same, logits.shape), first, axis=-1)[..., 0]
    hit = jnp.where(best > totals.best, found, totals.hit)
    if kind == "sigmoid":
        total = totals.total + jax.nn.softplus(jnp.where(same, -logits, logits)).sum(axis=-1)
    else:
        total = totals.total * jnp.exp(totals.best - best)
        total += jnp.exp(logits - best[..., None]).sum(axis=-1)
    if (positives := totals.positives) is not None:
        number = jnp.broadcast_to(same, logits.shape).sum(axis=-1, dtype=jnp.float32)
        logits = jnp.where(same, logits, 0.0).sum(axis=-1)
        positives = Positives(positives.total + logits, positives.number + number)
    return Totals(total, best, hit, positives)


def finished(kind: str, totals: Totals) -> Totals:
    """Returns the totals of all logits."""
    if kind == "softmax":
        return totals._replace(total=totals.best + jnp.log(totals.total))
    return totals


def side(total: Float[Array, "B N"], gradients: PyTree) -> Side:
    """Returns what all devices need of a side."""
    positives = gradients.positives
    return Side(total, gradients.total, None if positives is None else positives.total)


def softmax_weights(
    same: Bool[Array, "*#S"], logits: Float[Array, "*S"], side: Side
) -> Float[Array, "*S"]:
    """Returns the part of the loss's gradient by the logits that one side's totals bring.

    Args:
      same: which logits are of positives.
      logits: of a block.
      side: of such a shape that each logit meets its own totals.
    """
    weights = side.gradient * jnp.exp(logits - side.total)
    if side.positive_gradient is not None:
        weights += jnp.where(same, side.positive_gradient, 0.0)
    return weights


def gather(comparison: Comparison, rows: PyTree) -> PyTree:
    """Returns the rows of all devices; in a ring, the own ones that are to be sent round."""
    if not comparison.axes or comparison.exchange == "ring":
        return rows
    all_gather = functools.partial(jax.lax.all_gather, axis_name=comparison.axes, tiled=True)
    return jax.tree.map(all_gather, rows)


def fold(
    comparison: Comparison, add: Callable[[Any, Any], Any], start: PyTree, rows: PyTree
) -> PyTree:
    """Returns `start` after `add` of the rows of all devices, block by block.

    Args:
      comparison: how the rows come here.
      add: a function of what there is and a block of rows.
      start: what there is at first.
      rows: what `gather` returned.
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
