"""What can be known of a caption before training: its nouns and its token ids."""

import dataclasses
import functools
import hashlib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from groupvit_jax.data import nouns
from groupvit_jax.data.text import ClipTokenizer, SentencePieceTokenizer, Tokenizer

__all__ = ["annotate", "fingerprint", "open_tokenizer", "token_ids"]

_LONGEST = 512  # tokens kept of a caption; a shorter context cuts them when they are used
_PROBE = ["A dog's “photo”, two naïve cafés &amp; 北京!", "THE   quick brown fox; jumped... 3.14"]


def open_tokenizer(name: str) -> Tokenizer | None:
    """Opens `--tokenizer`: "clip", a SentencePiece model's path, or "" for none."""
    if not name:
        return None
    return ClipTokenizer(_LONGEST) if name == "clip" else SentencePieceTokenizer(name, _LONGEST)


def fingerprint(tokenizer: Tokenizer) -> str:
    """Returns what tells a tokenizer of `data.text` from another, at any length of context.

    It hangs on the vocabulary and on what becomes of a few texts, their cleaning included.
    """
    return _fingerprint(cast(Hashable, tokenizer))


@functools.cache
def _fingerprint(tokenizer: Any) -> str:
    tokenizer = dataclasses.replace(tokenizer, context_length=_LONGEST)
    digest = hashlib.sha256(tokenizer(_PROBE).tobytes())
    if isinstance(tokenizer, SentencePieceTokenizer):
        digest.update(Path(tokenizer.path).read_bytes())
    return f"{type(tokenizer).__name__}-{digest.hexdigest()[:16]}"


def annotate(captions: Sequence[str], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Returns the fields `nouns` and, with a tokenizer, `tokens` of a sample's JSON.

    Returns:
      {"nouns": {"words": lists, "phrases": lists}, "tokens": {"tokenizer": fingerprint, "ids":
      lists}}, each with one list for every caption; ids run from start to end of text.
    """
    words = [nouns.nouns(caption) for caption in captions]
    phrases = [nouns.noun_phrases(caption) for caption in captions]
    fields: dict[str, Any] = {"nouns": {"words": words, "phrases": phrases}}
    if tokenizer is not None:
        end = tokenizer.end_of_text_id
        rows = (row.tolist() for row in tokenizer(captions))
        ids = [row[: row.index(end) + 1] for row in rows]
        fields["tokens"] = {"tokenizer": fingerprint(tokenizer), "ids": ids}
    return fields


def token_ids(sample: Mapping[str, Any], index: int, tokenizer: Tokenizer) -> list[int] | None:
    """Returns the precomputed ids of caption `index`, as the tokenizer would give them.

    Returns:
      At most `tokenizer.context_length` ids without padding; None if the sample has none of this
      tokenizer, whose fingerprint is compared: the caption is to be tokenized then.
    """
    tokens = sample.get("tokens")
    if tokens is None or tokens["tokenizer"] != fingerprint(tokenizer):
        return None
    ids, length = tokens["ids"][index], tokenizer.context_length
    return ids if len(ids) <= length else [*ids[: length - 1], tokenizer.end_of_text_id]
