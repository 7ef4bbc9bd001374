"""Blockwise pairing of a device's examples with the global batch.

Shared by the losses: exchange of rows between devices, and reductions over a block of logits. No
device ever holds all B x B logits, which would limit the batch by memory.
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
class Pairing:
    """How images are compared with texts.

    Attributes:
      kind: "softmax" or "sigmoid".
      axes: mesh axes that shard the batch; within `jax.shard_map` only.
      exchange: "all_gather" holds the embeddings of the whole batch, "ring" those of one device at
        a time: less memory, more communication steps.
      block_size: examples that a device compares its own with at once; rounded down to a divisor of
        their number, so that all blocks have one shape.
    """

    kind: str = "softmax"
    axes: tuple[str, ...] = ()
    exchange: str = "all_gather"
    block_size: int = 256


ON_ONE_DEVICE = Pairing()


def l2_normalize(x: Float[Array, "*batch D"], epsilon: float = 1e-12) -> Float[Array, "*batch D"]:
    """Return `x / max(||x||, epsilon)` over the last axis, in float32; zero stays zero."""
    x = x.astype(jnp.float32)
    # Clip before the square root: its gradient at zero is infinite, and 0 * inf would be NaN.
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, epsilon**2))


def clipped_scale(logit_scale: Float[Array, ""]) -> Float[Array, ""]:
    """Return the factor of the cosines, `min(exp(logit_scale), 100)`, in float32.

    CLIP found the bound necessary for stable training (arXiv 2103.00020, section 2.5).
    """
    return jnp.minimum(jnp.exp(logit_scale.astype(jnp.float32)), MAX_LOGIT_SCALE)


def product(equation: str, a: Array, b: Array) -> Array:
    """Return the einsum in full float32.

    By default TPUs multiply in bfloat16, whose 8 significant bits put a logit of 100 off by 0.4.
    """
    return jnp.einsum(equation, a, b, precision=jax.lax.Precision.HIGHEST)


def global_positions(pairing: Pairing, num_examples: int) -> Int[Array, "B"]:
    """Return the positions of this device's examples in the global batch."""
    device = jax.lax.axis_index(pairing.axes) if pairing.axes else 0
    return device * num_examples + jnp.arange(num_examples)


def global_sum(pairing: Pairing, x: Float[Array, "*S"]) -> Float[Array, ""]:
    """Return the sum over the examples of all devices."""
    return jax.lax.psum(x.sum(), pairing.axes) if pairing.axes else x.sum()


def global_mean(pairing: Pairing, x: Float[Array, "*S"]) -> Float[Array, ""]:
    """Return the mean over the examples of all devices."""
    return jax.lax.pmean(x.mean(), pairing.axes) if pairing.axes else x.mean()


class Positives(NamedTuple):
    """Reduction over the positives of each item.

    Attributes:
      total: sum of their logits.
      number: their number.
    """

    total: Float[Array, "B N"]
    number: Float[Array, "B N"]


class Totals(NamedTuple):
    """Reduction of each item's logits with all items of the other kind.

    Attributes:
      total: "softmax": log-sum-exp; "sigmoid": sum of the losses.
      best: largest logit.
      hit: whether the largest logit is a positive's.
      positives: "softmax" only; None if an item's only positives are its own, whose logits are
        cheaper to compute apart.
    """

    total: Float[Array, "B N"]
    best: Float[Array, "B N"]
    hit: Bool[Array, "B N"]
    positives: Positives | None = None


class Both(NamedTuple):
    """Reductions in both directions: images over the n-th texts, and these texts over images."""

    image: Totals
    text: Totals


class Side(NamedTuple):
    """One direction's totals and the gradients of the loss with respect to them."""

    total: Float[Array, "B N"]
    gradient: Float[Array, "B N"]
    positive_gradient: Float[Array, "B N"] | None = None


def no_totals(like: Float[Array, "B N"], *, count_positives: bool) -> Totals:
    """Return the totals of no logits, device-varying like `like` (a `shard_map` carry must be)."""
    zero = jnp.zeros_like(like)
    positives = Positives(zero, zero) if count_positives else None
    # -inf and False by arithmetic on `like`: constants would not vary over devices.
    return Totals(zero, zero - jnp.inf, zero > 0, positives)


def add_logits(
    kind: str, same: Bool[Array, "B #N C"], totals: Totals, logits: Float[Array, "B N C"]
) -> Totals:
    """Add the logits of a block to the totals.

    The sum of exponentials is kept relative to the largest logit so far (online softmax, arXiv
    1805.02867): with logits of up to 100, exp overflows float32.

    Args:
      kind: kind of the loss.
      same: mask of the positives.
      totals: totals of the blocks so far.
      logits: logits of the block.
    """
    best = jnp.maximum(totals.best, logits.max(axis=-1))
    first = logits.argmax(axis=-1)[..., None]
    found = jnp.take_along_axis(jnp.broadcast_to(same, logits.shape), first, axis=-1)[..., 0]
    # Among equal logits the one seen first counts, here as in `argmax`.
    hit = jnp.where(best > totals.best, found, totals.hit)
    if kind == "sigmoid":
        total = totals.total + jax.nn.softplus(jnp.where(same, -logits, logits)).sum(axis=-1)
    else:
        # Before the first block `totals.best` is -inf, and this factor 0.
        total = totals.total * jnp.exp(totals.best - best)
        total += jnp.exp(logits - best[..., None]).sum(axis=-1)
    if (positives := totals.positives) is not None:
        number = jnp.broadcast_to(same, logits.shape).sum(axis=-1, dtype=jnp.float32)
        logits = jnp.where(same, logits, 0.0).sum(axis=-1)
        positives = Positives(positives.total + logits, positives.number + number)
    return Totals(total, best, hit, positives)


def finished(kind: str, totals: Totals) -> Totals:
    """Return the totals after the last block: the sum of exponentials becomes a log-sum-exp."""
    if kind == "softmax":
        return totals._replace(total=totals.best + jnp.log(totals.total))
    return totals


def side(total: Float[Array, "B N"], gradients: PyTree) -> Side:
    """Return the values that other devices need for their gradients."""
    positives = gradients.positives
    return Side(total, gradients.total, None if positives is None else positives.total)


def softmax_weights(
    same: Bool[Array, "*#S"], logits: Float[Array, "*S"], side: Side
) -> Float[Array, "*S"]:
    """Return one direction's part of the gradient of the loss with respect to the logits.

    Args:
      same: mask of the positives.
      logits: logits of a block.
      side: the direction's totals, broadcastable to the logits.
    """
    # The derivative of a log-sum-exp is the softmax; that of the positives' sum is 1 at each.
    weights = side.gradient * jnp.exp(logits - side.total)
    if side.positive_gradient is not None:
        weights += jnp.where(same, side.positive_gradient, 0.0)
    return weights


def gather(pairing: Pairing, rows: PyTree) -> PyTree:
    """Return the rows of all devices; in a ring, this device's own, which are then passed round."""
    if not pairing.axes or pairing.exchange == "ring":
        return rows
    all_gather = functools.partial(jax.lax.all_gather, axis_name=pairing.axes, tiled=True)
    return jax.tree.map(all_gather, rows)


def fold(pairing: Pairing, add: Callable[[Any, Any], Any], start: PyTree, rows: PyTree) -> PyTree:
    """Reduce the rows of all devices with `add`, block by block.

    Args:
      pairing: how rows are exchanged.
      add: `(result so far, block of rows) -> result`.
      start: the initial result.
      rows: output of `gather`.
    """
    if not pairing.axes or pairing.exchange == "all_gather":
        return _fold_blocks(pairing.block_size, add, start, rows)
    # After k hops a device holds the rows of the k-th device before it, and after the last its own
    # again, which are not compared twice.
    num_devices = jax.lax.axis_size(pairing.axes)
    ring = [(i, (i + 1) % num_devices) for i in range(num_devices)]

    def hop(state: tuple[PyTree, PyTree], _: None) -> tuple[tuple[PyTree, PyTree], None]:
        result, rows = state
        # Independent of the pairing below, so XLA can overlap sending with computing.
        arriving = jax.tree.map(lambda x: jax.lax.ppermute(x, pairing.axes, ring), rows)
        return (_fold_blocks(pairing.block_size, add, result, rows), arriving), None

    return jax.lax.scan(hop, (start, rows), length=num_devices)[0][0]


def _fold_blocks(
    block_size: int, add: Callable[[Any, Any], Any], start: PyTree, rows: PyTree
) -> PyTree:
    # One shape for all blocks, so that a scan can run them: only one block's logits exist at once.
    num_rows = len(jax.tree.leaves(rows)[0])
    size = max(n for n in range(1, min(block_size, num_rows) + 1) if num_rows % n == 0)
    blocks = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), rows)
    return jax.lax.scan(lambda result, block: (add(result, block), None), start, blocks)[0]
