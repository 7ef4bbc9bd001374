"""Where the CPU time of an image goes in our input pipeline, stage by stage."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import numpy as np
import simplejpeg
from ml_collections import ConfigDict

from groupvit_jax.data.images import decode, transforms
from groupvit_jax.data.images.augment import rand_augment
from groupvit_jax.data.pipeline.contrastive import TrainExamples, TrainLoader
from groupvit_jax.data.sources.pairs import WebDatasetSource
from groupvit_jax.data.sources.samples import Sample
from groupvit_jax.data.text import caption_tokens, nouns
from groupvit_jax.data.text.packing import pack_texts
from groupvit_jax.data.text.tokenizers import Tokenizer

__all__ = ["table"]

_SAMPLES = 256
_CHUNK = 64  # examples read at once, as training does
_ROUNDS = 5
_PART = "  of which "
_HUFFMAN = f"{_PART}Huffman codes, at most (whole image at 1/8)"


class _SameExample:
    """One example again and again: what is left is the work of making batches."""

    def __init__(self, example: dict[str, np.ndarray]):
        self._example = example

    def read(self, positions: Sequence[int]) -> Iterator[dict[str, np.ndarray]]:
        return iter([self._example] * len(positions))


def table(
    source: WebDatasetSource, examples: TrainExamples, config: ConfigDict, tokenizer: Tokenizer
) -> str:
    """Return microseconds of an image and share of the stages, medians over the rounds."""
    stages = _stages(source, config, tokenizer)
    whole, times = [], dict[str, list[float]]({name: [] for name in stages})
    for round_number in range(_ROUNDS):  # one after the other: drifts of the clock hit all alike
        first = round_number * _SAMPLES
        whole.append(_seconds(lambda i, first=first: _read_chunk(examples, first + i)))
        for name, function in stages.items():
            times[name].append(_seconds(function))
    medians = {name: float(np.median(values)) for name, values in times.items()}
    named = sum(value for name, value in medians.items() if not name.startswith(_PART))
    medians["all stages in turns, not one by one (caches)"] = float(np.median(whole)) - named
    medians["batches (threads, copies)"] = _batching(*examples.read([0]))
    total = float(np.median(whole)) + medians["batches (threads, copies)"]
    medians["all"] = total
    rows = [f"| {name} | {1e6 * t:.0f} | {t / total:.0%} |" for name, t in medians.items()]
    return "\n".join(["| stage | µs | share |", "|---|---|---|", *rows])


def _read_chunk(examples: TrainExamples, position: int) -> None:
    if position % _CHUNK == 0:
        for _ in examples.read(range(position, position + _CHUNK)):
            pass


def _seconds(function: Callable[[int], object]) -> float:
    start = time.process_time()
    for i in range(_SAMPLES):
        function(i)
    return (time.process_time() - start) / _SAMPLES


def _batching(example: dict[str, np.ndarray], batch_size: int = 128, count: int = 8) -> float:
    loader = TrainLoader(cast(TrainExamples, _SameExample(example)), batch_size)
    next(loader)
    start = time.process_time()
    for _ in range(count):
        next(loader)
    seconds = time.process_time() - start
    loader.close()
    return seconds / count / batch_size


def _stages(
    source: WebDatasetSource, config: ConfigDict, tokenizer: Tokenizer
) -> dict[str, Callable[[int], object]]:
    """Name -> what is done for image i, on what the stages before have made."""
    size, augment = config.model.image.image_size, config.data.augment
    rng = np.random.default_rng(0)
    samples = [source[int(i)] for i in rng.integers(len(source), size=_SAMPLES)]
    headers = [decode.read_header(sample["image"]) for sample in samples]
    boxes = [transforms.sample_crop(h.height, h.width, rng) for h in headers]
    min_size = math.ceil(1.5 * size)

    def decode_crop(i: int) -> np.ndarray:
        return decode.decode_box(samples[i]["image"], headers[i], boxes[i], min_size=min_size)

    crops = [decode_crop(i) for i in range(_SAMPLES)]
    images = [transforms.resize(crop, size, size) for crop in crops]
    prompts = [_prompts(sample, config, rng) for sample in samples]

    def header_and_box(i: int) -> None:
        header = decode.read_header(samples[i]["image"])
        transforms.sample_crop(header.height, header.width, rng)

    def huffman(i: int) -> None:
        # At 1/8 libjpeg transforms the DC coefficients only: nearly all else is entropy decoding.
        simplejpeg.decode_jpeg(samples[i]["image"], "GRAY", min_factor=8, min_width=1, min_height=1)

    def pack(i: int) -> None:
        texts = caption_tokens.tokenize(samples[i], 0, prompts[i], tokenizer)
        pack_texts(list(texts), config.data.packed_length, tokenizer.end_of_text_id)

    stages = {
        "generator of the example": lambda i: np.random.default_rng((0, i)),
        "reading": lambda i: source[i % len(source)],
        "header and box": header_and_box,
        "decoding of the crop": decode_crop,
        _HUFFMAN: huffman,
        "resizing": lambda i: transforms.resize(crops[i], size, size),
        "RandAugment": lambda i: rand_augment(images[i], rng, magnitude=augment.magnitude),
        "nouns and prompts": lambda i: _prompts(samples[i], config, rng),
        "token ids, packed": pack,
    }
    if headers[0].kind != "jpeg":
        del stages[_HUFFMAN]
    return stages


def _prompts(sample: Sample, config: ConfigDict, rng: np.random.Generator) -> list[str]:
    found = sample.get("nouns", {}).get(config.data.noun_kind)
    known = found[0] if found else None
    return nouns.make_prompts(
        sample["captions"][0], config.data.num_nouns, rng, config.data.noun_kind, known
    )
