"""Nouns and token ids of captions, computed before training and stored beside them."""

import dataclasses
import functools
import hashlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from absl import logging
from jaxtyping import Int32

from groupvit_jax.data.text import nouns
from groupvit_jax.data.text.tokenizers import ClipTokenizer, Tokenizer, make_tokenizer
from groupvit_jax.data.text.vocabulary import CLIP, read_vocabulary

__all__ = ["annotate", "fingerprint", "open_tokenizer", "tokenize"]

_LONGEST = 512  # tokens stored of a caption; a shorter context cuts them at use
_PROBE = ["A dog's “photo”, two naïve cafés &amp; 北京!", "THE   quick brown fox; jumped... 3.14"]


def open_tokenizer(name: str) -> Tokenizer | None:
    """Open `--tokenizer`: "clip", the path of a SentencePiece model or a BERT's vocab.txt, or "".

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no vocabulary.
    """
    if not name:
        return None
    kind = "wordpiece" if name.endswith(".txt") else "sentencepiece"
    vocabulary = CLIP if name == "clip" else read_vocabulary(kind, name, name)
    return make_tokenizer(vocabulary, _LONGEST)


def fingerprint(tokenizer: Tokenizer) -> str:
    """Return an identifier of a tokenizer's ids, independent of its context length.

    It covers the vocabulary and the ids of a few texts, so that a change of the cleaning shows.
    """
    return _fingerprint(cast(Hashable, tokenizer))


@functools.cache
def _fingerprint(tokenizer: Any) -> str:
    tokenizer = dataclasses.replace(tokenizer, context_length=_LONGEST)
    digest = hashlib.sha256(tokenizer(_PROBE).tobytes())
    if not isinstance(tokenizer, ClipTokenizer):
        digest.update(tokenizer.vocabulary.content)
    return f"{type(tokenizer).__name__}-{digest.hexdigest()[:16]}"


def annotate(captions: Sequence[str], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Return the fields `nouns` and, with a tokenizer, `tokens` of a sample's JSON.

    Returns:
      {"nouns": {kind: lists}, "tokens": {"tokenizer": fingerprint, "ids":
      lists}}, each with one list for every caption; ids run from start to end of text.
    """
    found = [nouns.all_kinds(caption) for caption in captions]
    kinds = {kind: [lists[kind] for lists in found] for kind in nouns.KINDS}
    fields: dict[str, Any] = {"nouns": kinds}
    if tokenizer is not None:
        end = tokenizer.end_of_text_id
        rows = (row.tolist() for row in tokenizer(captions))
        # Without padding: contexts differ, and rows are filled up again at use.
        ids = [row[: row.index(end) + 1] for row in rows]
        fields["tokens"] = {"tokenizer": fingerprint(tokenizer), "ids": ids}
    return fields


def tokenize(
    sample: Mapping[str, Any], index: int, prompts: Sequence[str], tokenizer: Tokenizer
) -> Int32[np.ndarray, "N T"]:
    """Tokenize caption `index` of a sample and its prompts, reusing the caption's stored ids.

    Stored ids with another tokenizer's fingerprint are ignored and the caption is tokenized.

    Returns:
      The rows of `tokenizer`, the caption's first.
    """
    ids = _stored_ids(sample, index, tokenizer)
    if ids is None:
        return tokenizer([sample["captions"][index], *prompts])
    rows = np.zeros((1 + len(prompts), tokenizer.context_length), np.int32)
    rows[0, : len(ids)] = ids
    if prompts:
        rows[1:] = tokenizer(prompts)
    return rows


def _stored_ids(sample: Mapping[str, Any], index: int, tokenizer: Tokenizer) -> list[int] | None:
    tokens = sample.get("tokens")
    if tokens is None:
        return None
    if tokens.get("tokenizer") != fingerprint(tokenizer):
        _warn_once(str(tokens.get("tokenizer")), fingerprint(tokenizer))
        return None
    ids, length = tokens["ids"][index], tokenizer.context_length
    # Cut as the tokenizer itself cuts: the last token is always the end of text.
    return ids if len(ids) <= length else [*ids[: length - 1], tokenizer.end_of_text_id]


@functools.cache
def _warn_once(stored: str, wanted: str) -> None:
    logging.warning("The data hold token ids of %s, not of %s: not used", stored, wanted)
