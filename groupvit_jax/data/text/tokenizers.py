"""Tokenizers: CLIP's byte-pair encoding, SentencePiece and BERT's WordPiece."""

import functools
import html
import io
import itertools
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import ftfy
import numpy as np
import sentencepiece
from jaxtyping import Int32

from groupvit_jax.data.text.byte_pairs import BytePairs
from groupvit_jax.data.text.vocabulary import Vocabulary
from groupvit_jax.data.text.wordpiece import WordPiece

__all__ = ["ClipTokenizer", "SentencePieceTokenizer", "Tokenizer", "WordPieceTokenizer"]
__all__ += ["check_text_tower", "clean_text", "has_start_token", "make_tokenizer", "text_id"]
__all__ += ["train_sentencepiece"]


@runtime_checkable
class Tokenizer(Protocol):
    """Encodes texts as padded rows of token ids. Picklable and thread-safe."""

    @property
    def vocab_size(self) -> int:
        """Number of ids."""

    @property
    def context_length(self) -> int:
        """Length of every row."""

    @property
    def end_of_text_id(self) -> int:
        """The id that ends every text, a truncated one too, and occurs nowhere else in it."""

    def __call__(self, texts: Sequence[str]) -> Int32[np.ndarray, "N T"]:
        """Return rows of start, text, end and zeros; a long text is cut before its end token."""


@dataclass(frozen=True)
class ClipTokenizer:
    """CLIP's lower-casing byte-pair encoding, with the published vocabulary of the package.

    Gives the ids of OpenAI's `clip.tokenize`, except that a caption that spells a marker token
    (`<|endoftext|>`) gets it as plain text, so that every row has one end of text.

    Raises:
      ValueError: the context has no room for a token between start and end.
    """

    context_length: int = 77

    def __post_init__(self):
        _check_context_length(self.context_length)

    @property
    def vocab_size(self) -> int:
        """49,408: 256 bytes, the same at the end of a word, 48,894 merges, start and end."""
        return _load_byte_pairs().size

    @property
    def end_of_text_id(self) -> int:
        """49,407, the largest id."""
        return _load_byte_pairs().end_id

    def __call__(self, texts: Sequence[str]) -> Int32[np.ndarray, "N T"]:
        """Return rows of start, text, end and zeros; a long text is cut before its end token."""
        return _encode_rows(_load_byte_pairs(), texts, self.context_length)


@dataclass(frozen=True)
class SentencePieceTokenizer:
    """A SentencePiece model, e.g. of `launch.train_tokenizer`.

    Rows are padded with 0, so id 0 must be the padding or the unknown piece. Models without a start
    piece give rows without one.

    Raises:
      ValueError: the content is no SentencePiece model, lacks an end piece, or uses id 0 for text.
    """

    vocabulary: Vocabulary
    context_length: int = 77

    def __post_init__(self):
        _check_context_length(self.context_length)
        model, origin = _load_sentencepiece(self.vocabulary), self.vocabulary.origin
        if model.eos_id() <= 0:
            raise ValueError(
                f"{origin}: the end piece has id {model.eos_id()}; "
                "expected a positive one (train with eos_id=3)"
            )
        if not (model.is_control(0) or model.is_unknown(0)) or model.bos_id() == 0:
            raise ValueError(
                f"{origin}: id 0 is {model.id_to_piece(0)!r}; "
                "expected the padding piece (train with pad_id=0)"
            )

    @property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return _load_sentencepiece(self.vocabulary).get_piece_size()

    @property
    def end_of_text_id(self) -> int:
        """The model's end-of-sentence piece."""
        return _load_sentencepiece(self.vocabulary).eos_id()

    def __call__(self, texts: Sequence[str]) -> Int32[np.ndarray, "N T"]:
        """Return rows of start, text, end and zeros; a long text is cut before its end token."""
        model = _load_sentencepiece(self.vocabulary)
        encoded = model.encode([clean_text(text) for text in texts], out_type=int, num_threads=1)
        start = [model.bos_id()] if model.bos_id() > 0 else []
        return _padded([start + ids for ids in encoded], model.eos_id(), self.context_length)


@dataclass(frozen=True)
class WordPieceTokenizer:
    """BERT's WordPiece: [CLS], text, [SEP], with a vocab.txt such as bert-base-uncased's.

    Gives the ids of Hugging Face's `BertTokenizer` for cleaned text, except that a caption that
    spells a special piece gets it as plain text.

    Raises:
      ValueError: the vocabulary's content is no vocab.txt of a BERT.
    """

    vocabulary: Vocabulary
    context_length: int = 77

    def __post_init__(self):
        _check_context_length(self.context_length)
        _load_wordpiece(self.vocabulary)

    @property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return _load_wordpiece(self.vocabulary).size

    @property
    def end_of_text_id(self) -> int:
        """The id of [SEP]."""
        return _load_wordpiece(self.vocabulary).end_id

    def __call__(self, texts: Sequence[str]) -> Int32[np.ndarray, "N T"]:
        """Return rows of start, text, end and zeros; a long text is cut before its end token."""
        return _encode_rows(_load_wordpiece(self.vocabulary), texts, self.context_length)


def _encode_rows(
    model: BytePairs | WordPiece, texts: Sequence[str], context_length: int
) -> Int32[np.ndarray, "N T"]:
    start, room = [model.start_id], context_length - 2
    encoded = [start + model.encode(clean_text(text), room) for text in texts]
    return _padded(encoded, model.end_id, context_length)


def _padded(
    encoded: Sequence[Sequence[int]], end_id: int, context_length: int
) -> Int32[np.ndarray, "N T"]:
    rows = np.zeros((len(encoded), context_length), np.int32)
    for row, ids in zip(rows, encoded, strict=True):
        # A long text is cut before the end, which every row must have.
        ids = [*ids[: context_length - 1], end_id]
        row[: len(ids)] = ids
    return rows


def clean_text(text: str) -> str:
    """Repair wrongly decoded characters and resolve HTML entities, also doubly escaped ones.

    This is CLIP's cleaning; lower case and white space are left to the tokenizers.
    """
    if not (text.isascii() and text.isprintable()):  # ftfy is slow and changes nothing otherwise
        text = ftfy.fix_text(text)
    return html.unescape(html.unescape(text)) if "&" in text else text


def make_tokenizer(vocabulary: Vocabulary, context_length: int) -> Tokenizer:
    """Return the tokenizer of a vocabulary, whose rows have `context_length` ids.

    Raises:
      ValueError: the vocabulary's content is damaged or of another kind.
    """
    if vocabulary.name == "clip":
        return ClipTokenizer(context_length)
    if vocabulary.name == "sentencepiece":
        return SentencePieceTokenizer(vocabulary, context_length)
    return WordPieceTokenizer(vocabulary, context_length)


def check_text_tower(
    tokenizer: Tokenizer, *, vocab_size: int, end_of_text_id: int, context_length: int
) -> None:
    """Check that the sizes of the text tower are the tokenizer's.

    Raises:
      ValueError: naming each field of `config.model.text` that differs.
    """
    fields = dict(
        vocab_size=vocab_size, end_of_text_id=end_of_text_id, context_length=context_length
    )
    wrong = [
        f"config.model.text.{field} is {found}, the tokenizer's is {expected}"
        for field, found in fields.items()
        if found != (expected := getattr(tokenizer, field))
    ]
    if wrong:
        raise ValueError("; ".join(wrong) + ": set them to the tokenizer's")


def text_id(text: str) -> int:
    """Return a hash below 2^31 that ignores case and runs of white space.

    In 6 of 100 batches of 16,000 different texts, two share a hash.
    """
    folded = " ".join(text.casefold().split())
    # Not `hash`, which differs between processes: workers must give one text one id.
    return zlib.crc32(folded.encode("utf-8", "surrogatepass")) & 0x7FFFFFFF


def has_start_token(tokenizer: Tokenizer) -> bool:
    """Return whether rows begin with a start token."""
    return bool(tokenizer([""])[0, 0] != tokenizer.end_of_text_id)


def train_sentencepiece(captions: Iterable[str], vocab_size: int, max_captions: int = 0) -> bytes:
    """Train a case-folded unigram model with byte fallback and the special ids 0 to 3.

    Args:
      captions: texts, not cleaned.
      vocab_size: number of pieces, the 4 special ones (padding, unknown, start, end) and the 256
        bytes among them.
      max_captions: size of the random sample to train on (over 100); 0 for all.

    Returns:
      The model file's content.

    Raises:
      ValueError: there is no caption, or the vocabulary size is too large for them or too small.
    """
    texts = filter(None, (" ".join(clean_text(caption).split()) for caption in captions))
    first = next(texts, None)
    if first is None:
        raise ValueError("there is no caption to train a vocabulary on")
    model = io.BytesIO()
    sentencepiece.set_random_generator_seed(0)  # of the sample
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain([first], texts),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            byte_fallback=True,
            normalization_rule_name="nmt_nfkc_cf",
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            # 0 takes all; without the shuffle below, a sample would be the first captions.
            input_sentence_size=max_captions,
            shuffle_input_sentence=max_captions > 0,
            minloglevel=1,
        )
    except RuntimeError as error:
        reason = str(error).rpartition("] ")[2] or str(error)  # without the C++ source line
        raise ValueError(f"vocab_size={vocab_size}: {reason}") from error
    return model.getvalue()


def _check_context_length(context_length: int) -> None:
    if context_length < 3:
        raise ValueError(
            f"config.model.text.context_length is {context_length}; expected at least 3 "
            "(start, one token, end)"
        )


# Encoders are not fields of a tokenizer: pickles stay small, each worker process reads its own on
# first use, and equal tokenizers share one.
@functools.cache
def _load_byte_pairs() -> BytePairs:
    return BytePairs()


@functools.cache
def _load_sentencepiece(vocabulary: Vocabulary) -> sentencepiece.SentencePieceProcessor:
    try:
        if not vocabulary.content:
            raise RuntimeError("the file is empty")
        return sentencepiece.SentencePieceProcessor(model_proto=vocabulary.content)
    except RuntimeError as error:
        raise ValueError(f"{vocabulary.origin} is no SentencePiece model: {error}") from error


@functools.cache
def _load_wordpiece(vocabulary: Vocabulary) -> WordPiece:
    try:
        return WordPiece(vocabulary.content)
    except ValueError as error:
        raise ValueError(f"{vocabulary.origin} is no vocabulary of a BERT: {error}") from error
