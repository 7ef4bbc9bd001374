"""Subword encoders of the `tokenizers` library, with a memo of the chunks already encoded."""

import tokenizers

__all__ = ["SubwordEncoder"]

_MAX_CHUNK_LENGTH = 64  # longer ones (addresses, hashes) hardly come again


class SubwordEncoder:
    """Encodes texts chunk by chunk; a chunk is what stands between two spaces.

    The library needs 4 us for a chunk and 20 us for a caption, a look-up in the memo takes 0.05 us,
    and captions repeat their words. Safe to call from several threads: the worst of a race is that
    a chunk is encoded twice.
    """

    def __init__(self, pipeline: tokenizers.Tokenizer, max_chunks: int = 2**16) -> None:
        """Take a pipeline that splits at every space and never looks across one.

        Args:
          pipeline: of the library; its special tokens are not added.
          max_chunks: the memo's size, about 200 bytes a chunk. It is emptied when it is full, which
            costs less than to keep track of what was used last.
        """
        self._memo = _ChunkMemo(pipeline, max_chunks)

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """Return the first `max_tokens` ids of a text, without start and end."""
        ids: list[int] = []
        for chunk in text.split(" "):
            ids += self._memo[chunk]
            if len(ids) >= max_tokens:
                break
        return ids[:max_tokens]


class _ChunkMemo(dict[str, list[int]]):
    """The ids of each chunk, encoded when it is looked up first."""

    def __init__(self, pipeline: tokenizers.Tokenizer, max_chunks: int) -> None:
        self._pipeline, self._max_chunks = pipeline, max_chunks

    def __missing__(self, chunk: str) -> list[int]:
        ids = self._pipeline.encode(chunk, add_special_tokens=False).ids
        if len(chunk) <= _MAX_CHUNK_LENGTH:
            if len(self) >= self._max_chunks:
                self.clear()
            self[chunk] = ids
        return ids
