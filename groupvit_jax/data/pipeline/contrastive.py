"""Contrastive training input: one endless, shuffled sequence of examples, equal on every machine.

Training example p (p = 0, 1, ...) is a pure function of (seed, p): the sample, the drawn caption
and the augmentation. The global batch of step n consists of examples [n B, (n+1) B), of which host
h of H holds rows [h B/H, (h+1) B/H). The step is therefore the whole state of the pipeline, and a
run resumes exactly on any number of hosts and workers. Epochs follow each other without a
remainder; each is a new shuffle in which every sample occurs once.
"""

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags
from jaxtyping import Int
from ml_collections import ConfigDict

from groupvit_jax.data.images import transforms
from groupvit_jax.data.images.decode import BrokenImageError
from groupvit_jax.data.pipeline import image_arrays
from groupvit_jax.data.pipeline.image_arrays import ImageArrays, ImageTransform
from groupvit_jax.data.sources.exchanged_captions import ExchangedCaptions
from groupvit_jax.data.sources.mixture import ExampleOrder, MixedSource, open_mixture
from groupvit_jax.data.sources.pairs import make_source
from groupvit_jax.data.sources.samples import (
    BrokenSampleError,
    Sample,
    Source,
)
from groupvit_jax.data.storage.cache import make_cache
from groupvit_jax.data.text import caption_tokens, nouns
from groupvit_jax.data.text.noun_bank import NOUN_KIND, rows_of
from groupvit_jax.data.text.packing import check_packed_length, pack_texts
from groupvit_jax.data.text.tokenizers import Tokenizer, text_id
from groupvit_jax.processes import end_with_parent, hidden_main

logger = logging.getLogger(__name__)

_MAX_CHUNK = 64  # rows per chunk delivered by a worker
_MAX_THREADS = 16
# So many consecutive broken samples point to another problem, such as a lost mount.
_MAX_REPLACEMENTS = 100
_NUM_STEPS = 2**31  # endless in practice


class TrainExamples:
    """The endless sequence of training examples, by position.

    A sample that can't be used is logged and replaced by another sample of its source, which is
    also a function of (seed, position).

    Attributes:
      num_samples: number of samples of all sources, including broken ones: the length of an epoch.
    """

    def __init__(
        self,
        source: MixedSource,
        order: ExampleOrder,
        seed: int,
        transform: Callable[[Any, np.random.Generator], dict[str, np.ndarray]],
    ):
        """Combine a source, the order of its samples, and the transform applied to each."""
        self.num_samples = len(source)
        self._source = source
        self._order = order
        self._seed = seed
        self._transform = transform
        self._num_undecodable = 0  # seen by this worker

    def read(self, positions: Sequence[int]) -> Iterator[dict[str, np.ndarray]]:
        """Yield examples, requesting their samples together because stores have high latency.

        Yields:
          The transform's arrays of each example, with "index" (of the sample) and "broken" (1:
          replaced).
        """
        indices = [self._order[position] for position in positions]
        samples = self._source.read_many(indices)
        yield from map(self._make, positions, indices, samples)

    def _make(self, position: int, index: int, sample: Any) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((self._seed, position))
        for attempt in range(_MAX_REPLACEMENTS):
            try:
                if isinstance(sample, BrokenSampleError):
                    # Sources yield errors in place of samples: one must not end its chunk.
                    raise sample
                example = self._transform(sample, rng)
            except (BrokenSampleError, BrokenImageError) as error:
                named = f"{self._source.locate(index)}: {error}"
                logger.warning("Broken sample replaced: %s", named)
                index = self._replacement(index, rng)
                [sample] = self._source.read_many([index])
            else:
                self._count_undecodable(index, sample)
                broken = np.asarray(attempt > 0, np.int32)
                return example | {"index": np.asarray(index, np.int32), "broken": broken}
        raise ValueError(f"{_MAX_REPLACEMENTS} broken samples in a row; the last: {named}")

    def _count_undecodable(self, index: int, sample: Any) -> None:
        """Log the 1st, 10th, 100th, ... sample with a caption that isn't UTF-8; all are used."""
        captions = sample.get("captions", ()) if isinstance(sample, dict) else ()
        if not any("\ufffd" in caption for caption in captions):
            return
        self._num_undecodable += 1
        if str(self._num_undecodable).strip("0") == "1":
            logger.warning(
                "Caption with U+FFFD in place of bytes that aren't UTF-8: %s (%d such samples read "
                "by this worker)",
                *(self._source.locate(index), self._num_undecodable),
            )

    def _replacement(self, index: int, rng: np.random.Generator) -> int:
        source, _ = self._source.find(index)
        return self._source.start(source) + int(rng.integers(self._source.sizes[source]))


def transform_pair(
    sample: Sample,
    rng: np.random.Generator,
    *,
    images: ImageArrays,
    tokenizer: Tokenizer,
    num_nouns: int,
    noun_kind: str,
    packed_length: int,
    bank_rows: Mapping[str, int] | None = None,
) -> dict[str, np.ndarray]:
    """Draw a caption and its prompts and augment the image; see `typing.Batch`."""
    # Caption, prompts, image: the order of the draws is part of what a seed stands for.
    index = int(rng.integers(len(sample["captions"])))
    caption, stored = sample["captions"][index], sample.get("nouns", {})
    known = {kind: words[index] for kind, words in stored.items()}
    prompts, words = nouns.draw_prompts(caption, num_nouns, rng, noun_kind, known.get(noun_kind))
    arrays = images(sample, rng=rng)
    if bank_rows is not None:
        arrays["bank_nouns"] = rows_of(bank_rows, caption, known.get(NOUN_KIND))
    texts = caption_tokens.tokenize(sample, index, prompts, tokenizer)
    row, ends, overflow = pack_texts(list(texts), packed_length, tokenizer.end_of_text_id)
    ids = np.array([text_id(each) for each in (caption, *words)], np.int32)
    return {
        **arrays,
        "text": row,
        "text_ends": ends,
        "text_ids": np.where(ends == ends[0], ids[0], ids),  # some prompts didn't fit
        "text_overflow": np.asarray(overflow, np.int32),
    }


@dataclasses.dataclass(frozen=True)
class _HostChunks:
    """The examples of one host in chunks, from its first row of the start step on."""

    examples: TrainExamples
    start_step: int
    batch_size: int
    host_index: int
    host_count: int

    @property
    def rows_per_step(self) -> int:
        return self.batch_size // self.host_count

    @property
    def chunk(self) -> int:
        """Chunks of a step: the first is ready sooner, and less memory is held."""
        rows = self.rows_per_step
        return max(size for size in range(1, min(rows, _MAX_CHUNK) + 1) if rows % size == 0)

    def __len__(self) -> int:
        return self.rows_per_step // self.chunk * _NUM_STEPS

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        step, row_of_step = divmod(index * self.chunk, self.rows_per_step)
        first_row = self.host_index * self.rows_per_step + row_of_step
        start = (self.start_step + step) * self.batch_size + first_row
        return _stack(self.examples.read(range(start, start + self.chunk)), self.chunk)


def _stack(examples: Iterator[dict[str, np.ndarray]], count: int) -> dict[str, np.ndarray]:
    """Copy each example while it is in cache, so that the next one can reuse its memory."""
    stacked: dict[str, np.ndarray] = {}
    for row, example in enumerate(examples):
        for name, array in example.items():
            if row == 0:
                stacked[name] = np.empty((count, *np.shape(array)), np.result_type(array))
            stacked[name][row] = array
    return stacked


class TrainLoader(Iterator[dict[str, np.ndarray]]):
    """An endless iterator over this host's rows of the global batches from `start_step` on.

    A batch is a `typing.Batch` of b = batch_size / host_count rows, with "broken": Int32 "b".
    `close` ends the worker processes.
    """

    def __init__(
        self,
        examples: TrainExamples,
        batch_size: int,
        *,
        num_workers: int | None = 0,
        host_index: int = 0,
        host_count: int = 1,
        start_step: int = 0,
    ):
        """Start the worker processes.

        Args:
          examples: what `make_train_examples` returns.
          batch_size: global.
          num_workers: number of worker processes; 0 uses threads of this process, None leaves one
            of the cores that this process may use to the training loop.
          host_index: this process's number, of `host_count`.
          host_count: processes that share the global batch.
          start_step: step of the first batch.

        Raises:
          ValueError: the hosts don't divide the batch.
        """
        if batch_size % host_count:
            raise ValueError(
                f"config.train.batch_size={batch_size} can't be divided by {host_count} hosts"
            )
        host_chunks = _HostChunks(examples, start_step, batch_size, host_index, host_count)
        workers = max(1, _num_cores() - 1) if num_workers is None else num_workers
        batches = _batched(host_chunks, workers)
        self._workers_to_start = workers
        self._batches: grain.DatasetIterator[dict[str, np.ndarray]] | None = iter(batches)

    def __next__(self) -> dict[str, np.ndarray]:
        if self._batches is None:
            raise StopIteration
        if self._workers_to_start:
            # Each of the first batches comes from another worker, which Grain starts by then.
            self._workers_to_start -= 1
            with hidden_main():
                return next(self._batches)
        return next(self._batches)

    def close(self) -> None:
        """End worker processes and threads; call it before the program exits."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None  # Grain's iterators log errors if they outlive their modules


def make_train_examples(
    data: ConfigDict,
    tokenizer: Tokenizer,
    *,
    image_size: int,
    seed: int,
    image_transform: ImageTransform | None = None,
    superpixel_grid: int = 0,
    bank_rows: Mapping[str, int] | None = None,
) -> TrainExamples:
    """Open the sources and return the sequence of training examples.

    Args:
      data: `config.data`.
      tokenizer: of the texts.
      image_size: side of the training images, in pixels.
      seed: of the examples' order and randomness.
      image_transform: in place of the published augmentation.
      superpixel_grid: patches in height and width, of which examples have the superpixels; 0: none.
      bank_rows: rows of the noun bank by noun, of which examples have their caption's; None: none.

    Raises:
      ValueError: a setting of `config.data` is wrong, or a source lacks the superpixels.
      FileNotFoundError: a source matches no file.
    """
    check_packed_length(data.packed_length, tokenizer.context_length)
    # A plain object: every look at a field of a ConfigDict takes 2 us, and this is once an image.
    fields = [field.name for field in dataclasses.fields(transforms.Augmentation)]
    augment = transforms.Augmentation(**{name: data.augment[name] for name in fields})
    augmented = functools.partial(transforms.train_transform, size=image_size, augment=augment)
    images = functools.partial(image_arrays.image_alone, transform=image_transform or augmented)
    if superpixel_grid:
        images = functools.partial(
            image_arrays.image_with_superpixels,
            size=image_size,
            augment=augment,
            grid=superpixel_grid,
        )
    transform = functools.partial(
        transform_pair,
        images=images,
        tokenizer=tokenizer,
        num_nouns=data.num_nouns,
        noun_kind=data.noun_kind,
        packed_length=data.packed_length,
        bank_rows=bank_rows,
    )
    cache = make_cache(data.cache_dir, data.cache_gib)

    def open_source(name: str, fields: Mapping[str, Any]) -> Source:
        source = make_source(name, fields, data.index_dir, cache)
        return ExchangedCaptions(source) if fields.get("exchange_captions") else source

    source, order = open_mixture(data.sources.to_dict(), seed, open_source)
    if superpixel_grid:
        image_arrays.check_superpixels(source)
    return TrainExamples(source, order, seed, transform)


def _batched(
    host_chunks: _HostChunks, num_workers: int
) -> grain.IterDataset[dict[str, np.ndarray]]:
    """Batch the examples on worker processes, or without any on threads; the result is the same."""
    rows, chunk = host_chunks.rows_per_step, host_chunks.chunk
    threads = 2 if num_workers else num_threads()
    chunks = grain.MapDataset.source(host_chunks).to_iter_dataset(
        grain.ReadOptions(threads, prefetch_buffer_size=2 * threads)
    )
    if num_workers:
        if not flags.FLAGS.is_parsed():  # Grain reads absl flags, also outside of commands
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=2)
        chunks = chunks.mp_prefetch(options, worker_init_fn=_init_worker)
    return chunks.batch(rows // chunk, batch_fn=_concatenate) if chunk < rows else chunks


def num_threads() -> int:
    """Return how many threads read samples in this process: one a core, up to 16."""
    return min(_MAX_THREADS, _num_cores())


def _num_cores() -> int:
    """Return how many cores this process may use: schedulers such as Slurm give it a part."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _init_worker(index: int, count: int) -> None:
    del index, count
    transforms.init_worker()
    end_with_parent()


def _concatenate(chunks: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


class TooManyBrokenSamplesError(RuntimeError):
    """More samples are broken than `config.data.max_broken_fraction` allows."""


class BrokenSampleMonitor:
    """Counts the broken samples of a run and raises an error when there are too many."""

    def __init__(self, max_fraction: float, min_examples: int = 1000):
        """Start counting.

        Args:
          max_fraction: tolerated fraction of broken samples.
          min_examples: smallest denominator of the fraction, so that a single broken sample in the
            first batch doesn't stop a run.
        """
        self._max_fraction = max_fraction
        self._min_examples = min_examples
        self.num_examples = 0
        self.num_broken = 0

    def update(self, broken: Int[np.ndarray, " B"]) -> None:
        """Add the "broken" counts of a batch.

        Raises:
          TooManyBrokenSamplesError: the fraction is exceeded.
        """
        self.num_examples += broken.size
        self.num_broken += int(broken.sum())
        allowed = self._max_fraction * max(self.num_examples, self._min_examples)
        if self.num_broken > allowed:
            raise TooManyBrokenSamplesError(
                f"{self.num_broken} of {self.num_examples} samples were broken, more than "
                f"config.data.max_broken_fraction={self._max_fraction} allows; the log names them"
            )
