"""CLIP's byte-pair encoding: its published vocabulary and the encoder.

`clip_merges.txt` holds the 48,894 merges that CLIP uses of OpenAI's `bpe_simple_vocab_16e6.txt`
(MIT License, Copyright (c) 2021 OpenAI, LICENSE.CLIP), in the form of Hugging Face's `merges.txt`.
"""

import importlib.resources

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from groupvit_jax.data.text.subwords import SubwordEncoder

__all__ = ["END", "MERGES_FILE", "START", "BytePairs", "read_merges", "read_tokens"]

START, END = "<|startoftext|>", "<|endoftext|>"
MERGES_FILE = importlib.resources.files(__package__) / "clip_merges.txt"

_END_OF_WORD = "</w>"
# A contraction's ending, a run of letters, one digit, or a run of other characters.
_WORD = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def read_merges() -> list[tuple[str, str]]:
    """Return the pairs of tokens in the order in which they are merged.

    Bytes are spelt as in GPT-2's vocabulary: printable ones as themselves, each of the others as a
    letter from U+0100 on.
    """
    _, *lines = MERGES_FILE.read_text("utf-8").splitlines()
    return [(first, second) for first, second in (line.split(" ") for line in lines)]


def read_tokens() -> list[str]:
    """Return the 49,408 tokens by id: bytes, bytes that end a word, merges, start and end."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    final_symbols = [symbol + _END_OF_WORD for symbol in symbols]
    merged = [first + second for first, second in read_merges()]
    return [*symbols, *final_symbols, *merged, START, END]


class BytePairs:
    """CLIP's encoder.

    Attributes:
      size: number of ids.
      start_id: the id that starts every text.
      end_id: the id that ends every text.
      pipeline: the library's tokenizer of lower-case text, without memo and cut.
    """

    def __init__(self) -> None:
        """Read the vocabulary, in about 0.2 s."""
        merges, tokens = read_merges(), read_tokens()
        ids = {token: i for i, token in enumerate(tokens)}
        self.size, self.start_id, self.end_id = len(ids), ids[START], ids[END]
        self.pipeline = tokenizers.Tokenizer(
            models.BPE(vocab=ids, merges=merges, end_of_word_suffix=_END_OF_WORD)
        )
        # str.lower() comes first, because only it knows the sigma that ends a word. The library
        # knows the capitals of newer Unicode versions than Python's, so that ids don't hang on it.
        self.pipeline.normalizer = normalizers.Lowercase()
        self.pipeline.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(_WORD), "removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        self._encoder = SubwordEncoder(self.pipeline)
        self._longest_token = max(len(token.removesuffix(_END_OF_WORD)) for token in tokens)
        self._reach = sum(len(first) for first, _ in merges)

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """Return the first `max_tokens` ids of a cleaned text, without start and end.

        Marker tokens that the text spells are plain text.
        """
        text = text.lower()
        if len(text) > self._reach:  # the rest is only worth looking at where it may be cut
            text = " ".join(text.split())[: self.relevant_length(max_tokens)]
        return self._encoder.encode(text, max_tokens)

    def relevant_length(self, max_tokens: int) -> int:
        """Return the number of characters that decide the first ids (a run of white space is one).

        A longer text is cut there, because the library takes 3 s for a word of a megabyte. The cut
        changes none of these ids: they cover at most `_longest_token` bytes each, and a space.
        Beyond them, follow the last boundary before which the text and its cut form are divided
        alike, while the merges are applied in order. It starts at the cut. A merge (a, b) moves it
        only if `a` ends at the boundary, and then by the length of `a`. Each merge has one turn,
        so the boundary moves back by the sum of all lengths of `a` at most.
        """
        return (max_tokens + 1) * (self._longest_token + 1) + self._reach
