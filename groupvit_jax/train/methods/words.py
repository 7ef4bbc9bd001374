"""Losses that compare segments with words: the local alignment and pooled parts."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from groupvit_jax import losses, parallel
from groupvit_jax.train.methods.settings import LossSettings
from groupvit_jax.train.step import Metrics
from groupvit_jax.typing import Array, Batch, Float, PyTree, TwoTowerOutput


def local_loss(
    output: TwoTowerOutput, settings: LossSettings, mesh: Mesh, batch: Batch
) -> tuple[Float[Array, ""], Metrics]:
    """Return the unweighted local alignment and its metrics; arguments as in
    `contrastive_task.contrastive_loss`.

    It shares the global loss's temperature, because zero-shot segmentation compares groups with
    class names at that temperature.
    """
    given = (output.segments, *_words(output, settings, batch))

    def on_device(rows: PyTree, scale: Array) -> Any:
        segments, words, mask, ids = rows
        return losses.local_alignment_loss(
            segments, words, mask, scale, settings.pairing, ids, settings.local_seekers
        )

    return _by_device(on_device, mesh, given, output.logit_scale)


def pooled_loss(
    output: TwoTowerOutput, settings: LossSettings, mesh: Mesh, batch: Batch
) -> tuple[Float[Array, ""], Metrics]:
    """Return the unweighted `losses.pooled_loss` and its metrics, of the words of `local_loss`."""
    given = (output.segments, *_words(output, settings, batch), output.text[:, 0])
    pairing = dataclasses.replace(settings.pairing, kind="softmax")

    def on_device(rows: PyTree, scale: Array) -> Any:
        segments, words, mask, ids, captions = rows
        count = settings.pooled_segments
        return losses.pooled_loss(segments, words, mask, captions, scale, count, pairing, ids)

    return _by_device(on_device, mesh, given, output.logit_scale)


def _by_device(on_device: Any, mesh: Mesh, rows: PyTree, scale: Array) -> Any:
    by_row, alike = PartitionSpec(parallel.BATCH_AXES), PartitionSpec()
    compare = jax.shard_map(on_device, mesh=mesh, in_specs=(by_row, alike), out_specs=alike)
    return compare(rows, scale)


def _words(
    output: TwoTowerOutput, settings: LossSettings, batch: Batch
) -> tuple[Array, Array, Any]:
    """Return the words' embeddings and mask, and the texts' identities if they count."""
    ends, ids = batch["text_ends"], batch["text_ids"]
    if output.tokens is not None:
        words = output.tokens
        # Places from 1, behind the start token, to the one before the caption's end-of-text token.
        mask = jnp.arange(1, 1 + words.shape[1]) < ends[:, :1]
        ids = ids[:, 0]
    else:
        words = output.text[:, 1:]
        # An image with too few nouns has its caption in place of a prompt: the caption is no word.
        mask = ends[:, 1:] != ends[:, :1]
        # A sum, because two images have identical texts if they have the same words in any order.
        ids = jnp.where(mask, ids[:, 1:], 0).sum(axis=1)
    return words, mask, ids if settings.identical_texts == "positives" else None
