"""Metrics and their counts: confusion matrices, top-k accuracy, retrieval recall.

Counting over pixels or pairs runs on the device. Sums over a whole set are kept in int64 on the
host, because a set has more pixels than an int32 can count.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Integer

from groupvit_jax.data.sources.masks import IGNORED
from groupvit_jax.typing import Array, Bool, Float, Int


def confusion_matrix(
    truth: Integer[Array, "B *pixels"],
    prediction: Integer[Array, "B *pixels"],
    present: Bool[Array, " B"],
    num_classes: int,
    ignored: int = IGNORED,
) -> Int[Array, "N N"]:
    """Count pixels by true class (rows) and predicted class (columns), on the device.

    Args:
      truth: class of every pixel; `ignored` and ids outside the classes are skipped.
      prediction: classes, below `num_classes`.
      present: rows of the batch that are examples, not padding.
      num_classes: number of classes.
      ignored: the id in `truth` of unlabelled pixels.
    """
    truth = truth.astype(jnp.int32)
    counts = (truth != ignored) & (truth >= 0) & (truth < num_classes)
    counts &= present.reshape(-1, *[1] * (truth.ndim - 1))
    # Pixels that don't count get a cell of their own behind the others, which is cut off.
    cell = jnp.where(counts, truth * num_classes + prediction, num_classes**2)
    matrix = jnp.bincount(cell.ravel(), length=num_classes**2 + 1)[:-1]
    return matrix.reshape(num_classes, num_classes)


def class_iou(confusion: Int[np.ndarray, "N N"]) -> Float[np.ndarray, " N"]:
    """Return the intersection over union of every class; NaN for classes without any pixel."""
    hits = np.diag(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - hits  # hits are in both sums
    return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)


def mean_iou(confusion: Int[np.ndarray, "N N"]) -> float:
    """Return the mean over classes that occur; NaN if none does."""
    iou = class_iou(confusion)
    # NumPy warns of a mean of nothing but NaN.
    return float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")


def pixel_accuracy(confusion: Int[np.ndarray, "N N"]) -> float:
    """Return the share of counted pixels with the right prediction; NaN if none is counted."""
    total = confusion.sum()
    return float(np.trace(confusion) / total) if total else float("nan")


def named_scores(names: Sequence[str], confusion: Int[np.ndarray, "N N"]) -> dict[str, float]:
    """Return `miou`, `pixel_accuracy`, and `iou/NAME` of every class that occurs.

    Args:
      names: of the classes.
      confusion: pixels by true class (rows) and predicted class (columns).

    Raises:
      ValueError: nothing is labelled.
    """
    if not confusion.sum():
        raise ValueError("nothing is labelled: all pixels of all masks are ignored")
    named = zip(names, class_iou(confusion).tolist(), strict=True)
    return {
        "miou": mean_iou(confusion),
        "pixel_accuracy": pixel_accuracy(confusion),
        **{f"iou/{name}": value for name, value in named if not np.isnan(value)},
    }


def rank_of_true_class(scores: Float[Array, "B N"], label: Int[Array, " B"]) -> Int[Array, " B"]:
    """Return the number of classes ranked before the true one; ties rank by index."""
    own = jnp.take_along_axis(scores, label[:, None], axis=1)
    earlier = jnp.arange(scores.shape[1]) < label[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(axis=1)


def first_match_rank(
    scores: Float[Array, "Q N"], query: Int[Array, " Q"], owner: Int[Array, " N"]
) -> Int[Array, " Q"]:
    """Return the number of candidates ranked before a query's first match.

    Args:
      scores: similarity of queries and candidates.
      query: identity of each query.
      owner: identity of each candidate; a match has the identity of the query.
    """
    right = query[:, None] == owner
    # Of several matches, the one with the best score is ranked first.
    best = jnp.where(right, scores, -jnp.inf).argmax(axis=1)
    return rank_of_true_class(scores, best)


def recall(rank: Int[np.ndarray, " Q"], k: int) -> float:
    """Return the share of queries whose first match has a `rank` (from 0) below `k`."""
    return float((np.asarray(rank) < k).mean())
