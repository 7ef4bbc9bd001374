"""The whole input pipeline that most people train image-text models with today, as one data set.

WebDataset reads tar shards; PIL decodes, crops and augments with timm's operations
(`pil_pipeline`); NumPy normalises and erases; the caption is tagged, its words are put into
prompts, and CLIP's byte-pair encoding in Python makes the ids. Nothing of `groupvit_jax.data` runs
in it but the draw of the crop.
"""

import functools
import html
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ftfy
import numpy as np
import regex
import webdataset
from ml_collections import ConfigDict
from nltk.tokenize import NLTKWordTokenizer
from textblob.taggers import PatternTagger

from benchmarks import pil_pipeline
from groupvit_jax.data.text.byte_pairs import END, START, read_merges, read_tokens
from groupvit_jax.data.text.nouns import clip_templates
from groupvit_jax.models.preprocess import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["BytePairEncoder", "batches"]

_USABLE = frozenset(["NN", "NNS", "NNP", "VB", "VBD", "VBG", "VBN", "VBP", "VBZ"])
_END_OF_WORD = "</w>"
_MOST_PASSES = 100_000
_MEAN = np.array(IMAGENET_MEAN, np.float32).reshape(3, 1, 1)
_STD = np.array(IMAGENET_STD, np.float32).reshape(3, 1, 1)


class BytePairEncoder:
    """CLIP's tokenizer in Python: cleaning, words by an expression, merges, a cache of words."""

    _WORD = regex.compile(
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
        regex.IGNORECASE,
    )

    def __init__(self, context_length: int) -> None:
        tokens, merges = read_tokens(), read_merges()
        self._ids = {token: number for number, token in enumerate(tokens)}
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        # The vocabulary begins with the bytes, printable ones first, as GPT-2's does.
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in printable]
        self._symbols = {byte: tokens[i] for i, byte in enumerate(printable + others)}
        self._cache: dict[str, list[int]] = {}
        self._context_length = context_length

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return int32 "N T": start, text, end and zeros."""
        rows = np.zeros((len(texts), self._context_length), np.int32)
        for row, text in zip(rows, texts, strict=True):
            ids = [self._ids[START], *self._encode(text), self._ids[END]]
            if len(ids) > self._context_length:
                ids = [*ids[: self._context_length - 1], ids[-1]]
            row[: len(ids)] = ids
        return rows

    def _encode(self, text: str) -> Iterator[int]:
        text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
        for word in self._WORD.findall(regex.sub(r"\s+", " ", text).lower()):
            if word not in self._cache:
                self._cache[word] = self._merge(word)
            yield from self._cache[word]

    def _merge(self, word: str) -> list[int]:
        parts = [self._symbols[byte] for byte in word.encode()]
        parts[-1] += _END_OF_WORD
        while len(parts) > 1:
            pairs = list(itertools.pairwise(parts))
            best = min(pairs, key=lambda pair: self._ranks.get(pair, math.inf))
            if best not in self._ranks:
                break
            merged, i = [], 0
            while i < len(parts):
                if tuple(parts[i : i + 2]) == best:
                    merged.append("".join(best))
                    i += 2
                else:
                    merged.append(parts[i])
                    i += 1
            parts = merged
        return [self._ids[part] for part in parts]


def batches(
    shards: Sequence[str], size: int, batch_size: int, config: ConfigDict, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield float32 "B 3 S S" and int32 "B N T" without end; only what is taken is worked for."""
    rng = np.random.default_rng(seed)
    encoder = BytePairEncoder(config.model.text.context_length)

    def example(sample: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        image = pil_pipeline.train_transform(sample["jpg"], size, config.data.augment, rng)
        pixels = _erase(_normalize(image), config.data.augment.random_erasing, rng)
        captions = json.loads(sample["json"]).get("captions") or [sample["txt"].decode()]
        caption = captions[rng.integers(len(captions))]
        return pixels, encoder([caption, *_prompts(caption, config.data.num_nouns, rng)])

    # As often as ever needed: WebDataset's own `repeat` ends each pass with a part of a batch.
    endless = list(shards) * (_MOST_PASSES // len(shards))
    data = webdataset.WebDataset(endless, shardshuffle=False, seed=seed)
    data = data.shuffle(1000).map(example).batched(batch_size, collation_fn=_collate)
    return iter(data)


def _collate(examples: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    images, texts = zip(*examples, strict=True)
    return np.stack(images), np.stack(texts)


def _normalize(image: np.ndarray) -> np.ndarray:
    """Channels first, 0-1, ImageNet's mean and deviation, as ToTensor and Normalize."""
    pixels = np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32)
    pixels /= 255
    pixels -= _MEAN
    pixels /= _STD
    return pixels


def _erase(pixels: np.ndarray, probability: float, rng: np.random.Generator) -> np.ndarray:
    """Random erasing with noise for each pixel."""
    if rng.random() >= probability:
        return pixels
    _, height, width = pixels.shape
    # timm's limits, and as many attempts.
    for _ in range(10):
        area = rng.uniform(0.02, 1 / 3) * height * width  # share of the image
        aspect = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if rows < height and columns < width:
            top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
            noise = rng.standard_normal((3, rows, columns), np.float32)
            pixels[:, top : top + rows, left : left + columns] = noise
            break
    return pixels


@functools.cache
def _tagger() -> tuple[NLTKWordTokenizer, PatternTagger]:
    return NLTKWordTokenizer(), PatternTagger()


def _prompts(caption: str, count: int, rng: np.random.Generator) -> list[str]:
    words, tagger = _tagger()
    tags = tagger.tag(" ".join(words.tokenize(caption)), tokenize=False)
    found = list(dict.fromkeys(word for word, tag in tags if tag in _USABLE))
    drawn = [found[i] for i in rng.permutation(len(found))[:count]]
    templates = clip_templates()
    prompts = [templates[rng.integers(len(templates))].format(word) for word in drawn]
    return prompts + [caption] * (count - len(prompts))
