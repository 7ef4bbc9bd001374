"""The texts of an image in one packed row against a padded row for each: tokens, FLOPs and time.

    python -m benchmarks.text --captions=captions.csv --captions=coco.json --captions=shard.tar

A set is a CSV or TSV with a header, captions in COCO's JSON, or a tar shard; each caption counts as
an image's, with prompts made of it as in training. For each set: the tokens of an image and the
share of images whose texts don't fit into rows of several lengths. Then groupvit-small's text tower
runs forward and backward in float32 on a batch whose texts fit; the same loss and gradients to 1e-5
come first, then FLOPs (counted by XLA) and time (median; both forms in turns). Last, captions as an
evaluation embeds them: rows as long as the longest caption against the whole context length.
"""

import functools
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks.captions import TOKENIZER, pack, read, texts_of
from configs.base import get_config
from groupvit_jax.data.text.packing import trim
from groupvit_jax.models import build_model

_CAPTIONS = flags.DEFINE_multi_string("captions", None, "CSV, TSV, JSON or tar", required=True)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "images a batch")
_NUM_NOUNS = flags.DEFINE_integer("num_nouns", 3, "prompts an image")
_LENGTH = flags.DEFINE_integer("packed_length", get_config().data.packed_length, "tokens a row")
_MAX_CAPTIONS = flags.DEFINE_integer("max_captions", 5000, "captions a set")
_REPEATS = flags.DEFINE_integer("repeats", 5, "runs of each form")

LENGTHS = (48, 56, 64, 80, 96, 112)
ENCODER = build_model(get_config().model).text_encoder.clone(dtype=jnp.float32)
TOLERANCE = 1e-5


def print_statistics(texts: np.ndarray) -> None:
    _, N, T = texts.shape
    used = pack(texts, N * T)[1].max(axis=1) + 1
    print(
        f"  {len(texts):,} captions, tokens an image: mean {used.mean():.1f}, 99 % within "
        f"{np.percentile(used, 99):.0f}, at most {used.max()}, padded {N * T}"
    )
    over = ", ".join(f"{(used > length).mean():.2%} of {length}" for length in LENGTHS)
    print(f"  images whose texts don't fit into a row: {over}")


Inputs = tuple[np.ndarray, ...]


@jax.jit
def features_and_gradients(params, inputs, targets):
    """Return the mean square of the features [B N, C] minus random values, and all gradients."""

    def loss(params):
        features = ENCODER.apply({"params": params}, *inputs)
        return jnp.mean((features.reshape(targets.shape) - targets) ** 2)

    return jax.value_and_grad(loss)(params)


@jax.jit
def features_only(params, tokens):
    return ENCODER.apply({"params": params}, tokens)


def check_equal(found, expected) -> float:
    """Return the greatest difference of any output, relative to its greatest value."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    worst = max(float(abs(a - b).max() / abs(b).max()) for a, b in pairs if abs(b).max() > 1e-6)
    if worst > TOLERANCE:
        raise SystemExit(f"error: packed and padded differ by {worst:.1e}")
    return worst


def seconds_in_turns(runs: Sequence[Callable[[], object]], repeats: int) -> np.ndarray:
    """Return seconds [runs, repeats]; drifts of the clock hit all runs alike."""
    seconds = np.zeros((len(runs), repeats))
    for repeat in range(repeats):
        for i, run in enumerate(runs):
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[i, repeat] = time.perf_counter() - start
    return seconds


def print_row(name: str, padded: float, other: float, unit: str) -> None:
    print(f"  {name:<28}{padded:>12.3f} {other:>12.3f} {unit:<8} {other / padded:.3f}")


def compare_training(params, texts: np.ndarray, length: int, repeats: int) -> None:
    B, N, T = texts.shape
    row, ends, _ = pack(texts, length)
    targets = np.random.default_rng(0).normal(size=(B * N, ENCODER.width)).astype(np.float32)
    forms: list[Inputs] = [(texts.reshape(B * N, T),), (row, ends)]
    runs = [functools.partial(features_and_gradients, params, f, targets) for f in forms]
    worst = check_equal(*(run() for run in reversed(runs)))
    print(f"  loss and gradients equal, relative difference at most {worst:.1e}")
    flops = [
        features_and_gradients.lower(params, f, targets).cost_analysis()["flops"] for f in forms
    ]
    seconds = np.median(seconds_in_turns(runs, repeats), axis=1)
    print(f"  {'forward and backward':<28}{'padded':>12} {'packed':>12} {'':<8} ratio")
    print_row("tokens an image", N * T, length, "")
    print_row("FLOPs", flops[0] / 1e9 / B, flops[1] / 1e9 / B, "G/image")
    print_row("time", *(seconds * 1e3 / B), "ms/image")


def compare_evaluation(params, captions: Sequence[str], repeats: int) -> None:
    tokens = TOKENIZER(captions)
    forms = [tokens, trim(tokens)]
    runs = [functools.partial(features_only, params, form) for form in forms]
    check_equal(*(run() for run in runs))
    seconds = np.median(seconds_in_turns(runs, repeats), axis=1)
    print(f"  {'forward, captions alone':<28}{'padded':>12} {'trimmed':>12}")
    print_row("tokens a caption", *(form.shape[1] for form in forms), "")
    print_row("time", *(seconds * 1e3 / len(captions)), "ms/text")


def main(argv: list[str]) -> None:
    del argv
    params = jax.jit(ENCODER.init)(jax.random.key(0), np.zeros((1, 8), np.int32))["params"]
    for path in _CAPTIONS.value:
        captions = read(path)
        captions = captions[:: -(-len(captions) // _MAX_CAPTIONS.value)]
        print(path)
        texts = texts_of(captions, _NUM_NOUNS.value)
        print_statistics(texts)
        fits = np.flatnonzero(pack(texts, _LENGTH.value)[2] == 0)
        # Repeated, where fewer fit than a batch has.
        chosen = np.resize(fits, _BATCH_SIZE.value)
        compare_training(params, texts[chosen], _LENGTH.value, _REPEATS.value)
        compare_evaluation(params, [captions[i] for i in chosen], _REPEATS.value)


if __name__ == "__main__":
    app.run(main)
