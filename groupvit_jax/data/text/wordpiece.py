"""BERT's WordPiece: the vocabulary of a vocab.txt and the encoder."""

import re

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from groupvit_jax.data.text.subwords import SubwordEncoder

__all__ = ["WordPiece"]

_SPECIAL = re.compile(r"\[[A-Za-z]+\d*\]")


class WordPiece:
    """The encoder of a BERT.

    Text is lower-cased and loses its accents unless the vocabulary has pieces with capitals.

    Attributes:
      size: number of ids.
      start_id: the id of [CLS].
      end_id: the id of [SEP].
      pipeline: the tokenizer of the `tokenizers` library, which adds neither.
    """

    def __init__(self, content: bytes) -> None:
        """Read a vocab.txt, whose line i is piece i.

        Raises:
          ValueError: it is no text, lacks a special piece, or [PAD] isn't the first.
        """
        try:
            lines = content.decode().removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"no UTF-8 text ({error.reason})") from error
        ids = {line.removesuffix("\r"): i for i, line in enumerate(lines)}
        for piece in ("[PAD]", "[UNK]", "[CLS]", "[SEP]"):
            if piece not in ids:
                raise ValueError(f"no line is {piece}, expected one piece on each line")
        if ids["[PAD]"] != 0:
            raise ValueError(f"[PAD] has id {ids['[PAD]']}, expected 0, the padding's")
        self.size, self.start_id, self.end_id = len(lines), ids["[CLS]"], ids["[SEP]"]
        ordinary = (piece for piece in ids if not _SPECIAL.fullmatch(piece))
        # A vocab.txt doesn't say whether it is cased; special pieces have capitals in any case.
        uncased = all(piece == piece.lower() for piece in ordinary)
        # Words of more than 100 characters are unknown, as in BERT's own tokenizer.
        model = models.WordPiece(vocab=ids, unk_token="[UNK]", max_input_chars_per_word=100)
        pipeline = tokenizers.Tokenizer(model)
        pipeline.normalizer = normalizers.BertNormalizer(lowercase=uncased)
        pipeline.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self.pipeline = pipeline
        self._encoder = SubwordEncoder(pipeline)

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """Return the first `max_tokens` ids of a text, without start and end.

        Special pieces that the text spells are plain text.
        """
        return self._encoder.encode(text, max_tokens)
