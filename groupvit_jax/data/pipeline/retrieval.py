"""Evaluation batches of image-caption pairs: every sample once, padded with a mask."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from groupvit_jax.data.images import transforms
from groupvit_jax.data.images.decode import BrokenImageError, decode
from groupvit_jax.data.pipeline.contrastive import num_threads
from groupvit_jax.data.sources.samples import BrokenSampleError, Source

logger = logging.getLogger(__name__)


def eval_examples(
    source: Source,
    batch_size: int,
    *,
    resize: int = 256,
    crop: int = 224,
    host_index: int = 0,
    host_count: int = 1,
) -> Iterator[dict[str, Any]]:
    """Yield this host's rows of evaluation batches: every sample of a source once, in order.

    Args:
      source: of images and captions.
      batch_size: global; the last batch is padded.
      resize: the shorter side in pixels.
      crop: side of the central square that is kept.
      host_index: this process's number, of `host_count`.
      host_count: processes that share a batch.

    Yields:
      {"image": UInt8 "b crop crop 3", "index": Int32 "b", "_mask": Bool "b", "captions": b lists of
      all captions of an image}. Rows of padding and of samples that can't be used, which the log
      names, have `_mask` False, a black image and no captions.

    Raises:
      ValueError: the hosts don't divide the batch.
    """
    if batch_size % host_count:
        raise ValueError(f"batch_size={batch_size} can't be divided by {host_count} hosts")
    rows = batch_size // host_count

    def load(row: int) -> dict[str, Any]:
        batch, row_of_batch = divmod(row, rows)
        index = batch * batch_size + host_index * rows + row_of_batch
        return _eval_example(source, index, resize, crop)

    # Whole batches only, the last one filled up: one shape, so evaluation compiles once.
    examples = grain.MapDataset.range(-(-len(source) // batch_size) * rows).map(load)
    yield from examples.batch(rows, batch_fn=_collate).to_iter_dataset(
        grain.ReadOptions(num_threads(), prefetch_buffer_size=num_threads())
    )


def _eval_example(source: Source, index: int, resize: int, crop: int) -> dict[str, Any]:
    image, captions = np.zeros((crop, crop, 3), np.uint8), []
    usable = index < len(source)
    if usable:
        try:
            sample = source[index]
            decoded = decode(sample["image"])
            image = transforms.resize_and_center_crop(decoded, resize, crop)
            captions = sample["captions"]
        except (BrokenSampleError, BrokenImageError) as error:
            logger.warning("Broken sample left out: %s: %s", source.locate(index), error)
            usable = False
    return {"image": image, "index": np.int32(index), "_mask": usable, "captions": captions}


def _collate(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    batch = {name: np.stack([e[name] for e in examples]) for name in ("image", "index", "_mask")}
    # As lists: images have different numbers of captions.
    return batch | {"captions": [example["captions"] for example in examples]}
