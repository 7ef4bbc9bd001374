"""Rows of token ids: the texts of an image packed into one, padding trimmed."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

__all__ = ["check_packed_length", "pack_texts", "trim"]


def check_packed_length(packed_length: int, context_length: int) -> None:
    """Raise ValueError unless a row has room for the longest text."""
    if packed_length < context_length:
        raise ValueError(
            f"config.data.packed_length: {packed_length} found, expected at least "
            f"config.model.text.context_length = {context_length}, the longest caption"
        )


def pack_texts(
    texts: Sequence[Int32[np.ndarray, " _"]], packed_length: int, end_of_text_id: int
) -> tuple[Int32[np.ndarray, " L"], Int32[np.ndarray, " N"], int]:
    """Pack the texts of an image into one row, one behind the other.

    Equal texts are stored once. A prompt that doesn't fit into the rest of the row is replaced by
    the caption, as if the caption had one noun less.

    Args:
      texts: token ids of the caption and then of each prompt; padding behind an end token is
        dropped.
      packed_length: L, at least the caption's length.
      end_of_text_id: the token that ends each text.

    Returns:
      The row, zero-padded; the position of each text's end token in it; the number of prompts that
      did not fit.
    """
    row, ends = np.zeros(packed_length, np.int32), np.zeros(len(texts), np.int32)
    stored: dict[bytes, int] = {}
    used = overflow = 0
    for i, text in enumerate(texts):
        text = text[: (text == end_of_text_id).argmax() + 1]
        key = text.tobytes()
        if key not in stored and used + len(text) <= packed_length:
            row[used : used + len(text)] = text
            used += len(text)
            stored[key] = used - 1
        # Not stored by now, so it didn't fit: the caption, which always fits, takes its place.
        overflow += key not in stored
        ends[i] = stored.get(key, ends[0])
    return row, ends, overflow


def trim(tokens: Int32[np.ndarray, "N T"]) -> Int32[np.ndarray, "N L"]:
    """Remove columns of padding; L is a multiple of 8, to limit recompilation."""
    longest = int(np.flatnonzero(tokens.any(axis=0)).max(initial=0)) + 1
    return tokens[:, : -(-longest // 8) * 8]
