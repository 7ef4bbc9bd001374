"""Where the time of an image goes in our input pipeline, stage by stage."""

import math
import time
from collections.abc import Callable, Iterable

import numpy as np
import simplejpeg
from ml_collections import ConfigDict

from groupvit_jax.data import decode, image_ops, nouns
from groupvit_jax.data.augment import rand_augment
from groupvit_jax.data.pipeline import TrainExamples
from groupvit_jax.data.sources import WebDatasetSource
from groupvit_jax.data.text import Tokenizer

__all__ = ["table"]

_SAMPLES = 400
_ROUNDS = 3


def table(
    source: WebDatasetSource,
    examples: TrainExamples,
    config: ConfigDict,
    tokenizer: Tokenizer,
    seconds: float,
) -> str:
    """Returns microseconds and shares of the stages; `seconds` is the whole of one image."""
    stages = _stages(source, examples, config, tokenizer)
    whole = _median_seconds(examples.__getitem__, range(_SAMPLES))
    stages["batching, threads, queues (Grain)"] = seconds - whole
    named = sum(t for name, t in stages.items() if not name.startswith("  "))
    stages["other"] = seconds - named
    stages["all"] = seconds
    lines = [f"| {name} | {1e6 * t:.0f} | {t / seconds:.0%} |" for name, t in stages.items()]
    return "\n".join(["| stage | µs/image | share |", "|---|---|---|", *lines])


def _median_seconds(function: Callable, arguments: Iterable) -> float:
    arguments = list(arguments)
    times = []
    for _ in range(_ROUNDS):
        start = time.process_time()
        for argument in arguments:
            function(argument)
        times.append((time.process_time() - start) / len(arguments))
    return float(np.median(times))


def _stages(
    source: WebDatasetSource, examples: TrainExamples, config: ConfigDict, tokenizer: Tokenizer
) -> dict[str, float]:
    size, augment = config.model.image.image_size, config.data.augment
    rngs = [np.random.default_rng(i) for i in range(_SAMPLES)]
    samples = [source[i % len(source)] for i in range(_SAMPLES)]
    headers = [decode.read_header(sample["image"]) for sample in samples]
    boxes = [
        image_ops.sample_crop(h.height, h.width, rng) for h, rng in zip(headers, rngs, strict=True)
    ]
    min_size = math.ceil(1.5 * size)

    def decode_crop(i: int) -> np.ndarray:
        return decode.decode_box(samples[i]["image"], headers[i], boxes[i], min_size=min_size)

    crops = [decode_crop(i) for i in range(_SAMPLES)]
    images = [image_ops.resize(crop, size, size) for crop in crops]
    captions = [sample["captions"][0] for sample in samples]
    prompts = [nouns.make_prompts(c, config.data.num_nouns, rngs[0]) for c in captions]
    number = range(_SAMPLES)

    def timed(function: Callable[[int], object]) -> float:
        return _median_seconds(function, number)

    def eighth(i: int) -> None:
        simplejpeg.decode_jpeg(samples[i]["image"], "RGB", min_factor=8, min_height=1, min_width=1)

    return {
        "generator": timed(lambda i: np.random.default_rng((0, i))),
        "reading": timed(lambda i: source[i % len(source)]),
        "header and box": timed(
            lambda i: (
                decode.read_header(samples[i]["image"]),
                image_ops.sample_crop(headers[i].height, headers[i].width, rngs[i]),
            )
        ),
        "decoding of the crop": timed(decode_crop),
        "  (whole image at 1/8: Huffman codes)": timed(eighth),
        "resizing": timed(lambda i: image_ops.resize(crops[i], size, size)),
        "RandAugment": timed(
            lambda i: rand_augment(images[i], rngs[i], magnitude=augment.magnitude)
        ),
        "nouns and prompts": timed(
            lambda i: nouns.make_prompts(captions[i], config.data.num_nouns, rngs[i])
        ),
        "token ids": timed(lambda i: tokenizer([captions[i], *prompts[i]])),
    }
