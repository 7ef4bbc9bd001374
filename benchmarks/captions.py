"""Captions and their prompts as token ids, for the benchmarks."""

import tempfile
from collections.abc import Sequence

import numpy as np

from groupvit_jax.data.sources.captions_table import read_texts
from groupvit_jax.data.sources.pairs import WebDatasetSource
from groupvit_jax.data.text import nouns
from groupvit_jax.data.text.packing import pack_texts
from groupvit_jax.data.text.tokenizers import ClipTokenizer

TOKENIZER = ClipTokenizer()


def read(path: str) -> list[str]:
    """Return all captions of a set."""
    if path.endswith(".tar"):
        with tempfile.TemporaryDirectory() as index_dir:  # nothing is left beside the data
            source = WebDatasetSource([path], index_dir)
            return [caption for i in range(len(source)) for caption in source[i]["captions"]]
    return list(read_texts(path))


def texts_of(captions: Sequence[str], num_nouns: int) -> np.ndarray:
    """Return the token ids [B, N, T] of each caption and its prompts."""
    rngs = map(np.random.default_rng, range(len(captions)))
    prompts = [nouns.make_prompts(c, num_nouns, r) for c, r in zip(captions, rngs, strict=True)]
    return np.stack([TOKENIZER([c, *p]) for c, p in zip(captions, prompts, strict=True)])


def pack(texts: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows [B, L], end [B, N] and how many prompts of each image did not fit [B]."""
    rows = [pack_texts(list(each), length, TOKENIZER.end_of_text_id) for each in texts]
    row, ends, overflow = (np.stack(values) for values in zip(*rows, strict=True))
    return row, ends, overflow
