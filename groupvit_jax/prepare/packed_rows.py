"""How long packed rows must be for the captions at hand: prompts that find no room, by length.

Training packs a caption and its prompts into one row of `config.data.packed_length` tokens and
replaces a prompt that doesn't fit by the caption (`data.text.packing`). Whether 80 tokens suffice
depends on the captions, so it is measured where they are all read anyway.
"""

import dataclasses
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import Int

from groupvit_jax.data.text import nouns
from groupvit_jax.data.text.packing import pack_texts
from groupvit_jax.data.text.tokenizers import ClipTokenizer, Tokenizer

__all__ = ["LENGTHS", "add_up", "as_dict", "lost_prompts", "sentence"]

# The published setting: CLIP's context, and 3 prompts of words that are tagged as nouns or verbs.
_CONTEXT, _NUM_PROMPTS, _KIND = 77, 3, "tagged_words"
# From the default on. The longest caption with three long prompts has about 130 tokens.
LENGTHS = tuple(range(80, 145, 8))
_TOLERATED = 0.01  # of the prompts


def lost_prompts(
    key: str,
    captions: Sequence[str],
    found: Mapping[str, Sequence],
    tokenizer: Tokenizer | None = None,
) -> list[int]:
    """Return how many of an image's prompts don't fit into a row of each of `LENGTHS`.

    Args:
      key: of the sample; it decides which caption, words and templates are drawn.
      captions: of the image.
      found: the words of each caption by kind, as `caption_tokens.annotate` returns them.
      tokenizer: of any context length; CLIP's by default.
    """
    tokenize = dataclasses.replace(cast(Any, tokenizer or ClipTokenizer()), context_length=_CONTEXT)
    # Not `hash`, which Python salts anew in each process: a shard's counts must be repeatable.
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    index = int(rng.integers(len(captions)))
    prompts, _ = nouns.draw_prompts(captions[index], _NUM_PROMPTS, rng, _KIND, found[_KIND][index])
    texts, end = tokenize([captions[index], *prompts]), tokenize.end_of_text_id
    # Most captions fit at once; only the others are packed at every length.
    if np.count_nonzero(texts) <= LENGTHS[0]:
        return [0] * len(LENGTHS)
    return [pack_texts(list(texts), length, end)[2] for length in LENGTHS]


def as_dict(num_images: int, lost: Int[np.ndarray, " L"]) -> dict[str, Any]:
    """Return the record of a shard; `lost` are sums of `lost_prompts`."""
    by_length = dict(zip(map(str, LENGTHS), map(int, lost), strict=True))
    return {"prompts": _NUM_PROMPTS * num_images, "lost": by_length}


def add_up(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up the shards' records; shards made before this was counted have none.

    Returns:
      {"prompts": number drawn, "lost": {length: number that don't fit}}.
    """
    counted = [record["packed_rows"] for record in records if "packed_rows" in record]
    return {
        "prompts": sum(each["prompts"] for each in counted),
        "lost": {str(n): sum(each["lost"][str(n)] for each in counted) for n in LENGTHS},
    }


def sentence(total: Mapping[str, Any]) -> str:
    """Say which share of prompts the default loses, and which length loses under 1 %."""
    if not total["prompts"]:
        return ""
    shares = {n: total["lost"][str(n)] / total["prompts"] for n in LENGTHS}
    text = f"prompts that don't fit into config.data.packed_length={LENGTHS[0]}: "
    text += f"{shares[LENGTHS[0]]:.2%} of {total['prompts']:,}"
    enough = next((n for n in LENGTHS if shares[n] < _TOLERATED), None)
    if enough is None:
        return f"{text}; at {LENGTHS[-1]} still {shares[LENGTHS[-1]]:.2%}"
    if enough == LENGTHS[0]:
        return text
    return f"{text}; under 1 % from {enough} on: train with --config.data.packed_length={enough}"
