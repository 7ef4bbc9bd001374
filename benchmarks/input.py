"""The input pipeline against the usual one (WebDataset, PIL, NumPy), in images/s of one core.

    python -m benchmarks.input --shards='raw/*.tar' [--shards='prepared/*.tar'] [--profile]
        [--usual_shards='raw/*.tar' --usual_shards='raw/*.tar']

Both read the same shards, or with --usual_shards others of the same photos, and make batches of
augmented 224-pixel images with four texts each, all in one process, in turns. Figures are medians
over the rounds of CPU time, threads included, for the same number of images; other processes on
the machine disturb it less than wall time. Ours is what training calls, `TrainLoader` of
`make_train_examples`; normalisation and erasing are the accelerator's there. What worker processes
cost on top (one copy of a batch, either way) is in neither.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from benchmarks import input_profile, webdataset_pipeline
from configs.base import get_config
from groupvit_jax.data.images import transforms
from groupvit_jax.data.images.decode import read_header
from groupvit_jax.data.pipeline.contrastive import (
    TrainExamples,
    TrainLoader,
    make_train_examples,
)
from groupvit_jax.data.sources.pairs import WebDatasetSource
from groupvit_jax.data.sources.patterns import expand_pattern
from groupvit_jax.data.text.tokenizers import ClipTokenizer

_SHARDS = flags.DEFINE_multi_string("shards", None, "pattern of tar shards", required=True)
_USUAL = flags.DEFINE_multi_string(
    "usual_shards", [], "for each --shards, what the usual pipeline reads in their place"
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "images in a batch")
_BATCHES = flags.DEFINE_integer("batches", 4, "batches in a round")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "rounds of both pipelines")
_PROFILE = flags.DEFINE_bool("profile", False, "print where our time goes, too")

_IDLE_SECONDS = 0.5


def _config(pattern: str) -> ConfigDict:
    config = get_config()
    config.data.sources.pairs = dict(kind="webdataset", pattern=pattern)
    return config


class _Counted:
    """Examples that count how many were made, also those that a thread makes ahead."""

    def __init__(self, examples: TrainExamples):
        self._examples = examples
        self.begun = 0
        self.made = 0

    def read(self, positions: Sequence[int]) -> Iterator[dict[str, np.ndarray]]:
        self.begun += len(positions)
        yield from self._examples.read(positions)
        self.made += len(positions)


def _wait_until_idle(examples: _Counted) -> int:
    """Return the number of images made once the threads that read ahead have no more to do."""
    made, since = examples.made, time.monotonic()
    while examples.begun > examples.made or time.monotonic() < since + _IDLE_SECONDS:
        time.sleep(_IDLE_SECONDS / 20)
        if examples.made > made:
            made, since = examples.made, time.monotonic()
    return made


def _our_rate(batches: Iterator[object], examples: _Counted, count: int) -> float:
    """Images per second of CPU time, in all threads."""
    before, start = _wait_until_idle(examples), time.process_time()
    for _ in range(count):
        next(batches)
    made = _wait_until_idle(examples) - before
    return made / (time.process_time() - start)


def _usual_rate(batches: Iterator[object], count: int, batch_size: int) -> float:
    start = time.process_time()
    for _ in range(count):
        next(batches)
    return count * batch_size / (time.process_time() - start)


def _compare(
    usual_shards: Sequence[str], examples: TrainExamples, config: ConfigDict
) -> list[float]:
    """Time both in turns; return the medians of images/s, ours first, and of their ratio."""
    size, batch_size = config.model.image.image_size, _BATCH_SIZE.value
    counted = _Counted(examples)
    ours = TrainLoader(cast(TrainExamples, counted), batch_size)
    usual = webdataset_pipeline.batches(usual_shards, size, batch_size, config, seed=0)
    # Also starts the threads of both, before anything is timed.
    _check(next(ours), next(usual), size)
    count = _BATCHES.value
    rates = np.array(
        [
            (_our_rate(ours, counted, count), _usual_rate(usual, count, batch_size))
            for _ in range(_ROUNDS.value)
        ]
    )
    ours.close()
    return [*np.median(rates, axis=0), np.median(rates[:, 0] / rates[:, 1])]


def _check(ours: dict[str, np.ndarray], usual: tuple[np.ndarray, np.ndarray], size: int) -> None:
    """Make sure that both make batches of the same size, as uint8 and as floats."""
    images, texts = usual
    assert ours["image"].shape == (len(images), size, size, 3), ours["image"].shape
    assert ours["text_ends"].shape == texts.shape[:2], (ours["text_ends"].shape, texts.shape)
    assert images.shape == (len(images), 3, size, size), images.shape


def _check_token_ids(source: WebDatasetSource, tokenizer: Callable, context_length: int) -> None:
    captions = [source[i]["captions"][0] for i in range(min(len(source), 200))]
    encoder = webdataset_pipeline.BytePairEncoder(context_length)
    np.testing.assert_array_equal(tokenizer(captions), encoder(captions))


def _describe(source: WebDatasetSource) -> str:
    images = [source[i]["image"] for i in range(min(len(source), 1000))]
    headers = [read_header(data) for data in images]
    long = np.median([max(h.height, h.width) for h in headers])
    short = np.median([min(h.height, h.width) for h in headers])
    kilopixels = np.mean([h.height * h.width for h in headers]) / 1e3
    kilobytes = np.mean([len(data) for data in images]) / 1e3
    return (
        f"{len(source)} images, median {long:.0f} x {short:.0f} pixels, mean {kilopixels:.0f} "
        f"kilopixels, {kilobytes:.0f} kB"
    )


def main(argv: list[str]) -> None:
    del argv
    transforms.init_worker()
    rows, usual_patterns = [], _USUAL.value or _SHARDS.value
    for pattern, usual_pattern in zip(_SHARDS.value, usual_patterns, strict=True):
        config = _config(pattern)
        shards = expand_pattern(pattern, "--shards")
        source = WebDatasetSource(shards)
        tokenizer = ClipTokenizer(config.model.text.context_length)
        print(f"{pattern}: {_describe(source)}", flush=True)
        _check_token_ids(source, tokenizer, config.model.text.context_length)
        examples = make_train_examples(
            config.data, tokenizer, image_size=config.model.image.image_size, seed=config.seed
        )
        usual_shards = expand_pattern(usual_pattern, "--usual_shards")
        num_usual = len(WebDatasetSource(usual_shards))
        assert num_usual == len(source), f"{usual_pattern}: {num_usual} images"
        ours, usual, ratio = _compare(usual_shards, examples, config)
        rows.append(f"| {pattern} | {ours:.0f} | {usual_pattern} | {usual:.0f} | {ratio:.2f} |")
        if _PROFILE.value:
            print(input_profile.table(source, examples, config, tokenizer), flush=True)
    print("| ours | images/s/core | WebDataset and PIL | images/s/core | ratio |")
    print("|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    app.run(main)
