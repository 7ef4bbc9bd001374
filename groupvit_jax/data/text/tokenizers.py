"""Texts to token ids: CLIP's byte-pair encoding, SentencePiece, or a BERT's WordPiece."""

import functools
import html
import io
import itertools
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import ftfy
import instant_clip_tokenizer
import numpy as np
import sentencepiece
from jaxtyping import Int32
from ml_collections import ConfigDict

from groupvit_jax.data.text.vocabulary import Vocabulary, read_vocabulary
from groupvit_jax.data.text.wordpiece import WordPiece

__all__ = ["ClipTokenizer", "SentencePieceTokenizer", "Tokenizer", "WordPieceTokenizer"]
__all__ += ["check_packed_length", "check_text_config", "clean_text", "make_tokenizer"]
__all__ += ["has_start_token", "pack_texts", "text_id", "train_sentencepiece", "trim"]

_CLIP_MARKER = re.compile(r"<(start|end)_of_text>", re.IGNORECASE)


@runtime_checkable
class Tokenizer(Protocol):
    """Texts to padded token ids. Picklable, and safe to call from several threads."""

    @property
    def vocab_size(self) -> int:
        """Number of ids."""

    @property
    def context_length(self) -> int:
        """Length of every row."""

    @property
    def end_of_text_id(self) -> int:
        """The id that ends every text, also a truncated one, and occurs nowhere else in it."""

    def __call__(self, texts: Sequence[str]) -> Int32[np.ndarray, "N T"]:
        """Returns start, text, end and zeros; what does not fit is cut off before the end token."""


@dataclass(frozen=True)
class ClipTokenizer:
    """CLIP's lower-casing byte-pair encoding, whose vocabulary is inside the wheel it comes from.

    Gives the ids of OpenAI's `clip.tokenize`, except that the marker tokens are plain text where a
    caption spells them, so that it holds one end of text.

    Raises:
      ValueError: the context has no room for a token between start and end.
    """

    context_length: int = 77

    def __post_init__(self):
        _check_context_length(self.context_length)

    @property
    def vocab_size(self) -> int:
        """49,408: 256 bytes and the same ending a word, 48,894 merges, start and end."""
        return _clip_encoder().end_of_text() + 1

    @property
    def end_of_text_id(self) -> int:
        """49,407, the largest id."""
        return _clip_encoder().end_of_text()

    def __call__(self, texts: Sequence[str]) -> Int32[np.ndarray, "N T"]:
        """Returns start, text, end and zeros; what does not fit is cut off before the end token."""
        texts = [_CLIP_MARKER.sub(r"< \1_of_text >", clean_text(text)) for text in texts]
        rows = _clip_encoder().tokenize_batch(texts, context_length=self.context_length)
        return rows.astype(np.int32)


@dataclass(frozen=True)
class SentencePieceTokenizer:
    """A SentencePiece model, e.g. one that `launch.train_tokenizer` wrote.

    Padding is 0, so id 0 must be no piece of text: the padding or the unknown piece. A model
    without a start piece gives rows without one.

    Raises:
      ValueError: the vocabulary is no SentencePiece model, or has no end piece, or id 0 is taken.
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
        """Returns start, text, end and zeros; what does not fit is cut off before the end token."""
        model = _load_sentencepiece(self.vocabulary)
        encoded = model.encode([clean_text(text) for text in texts], out_type=int, num_threads=1)
        start = [model.bos_id()] if model.bos_id() > 0 else []
        return _padded([start + ids for ids in encoded], model.eos_id(), self.context_length)


@dataclass(frozen=True)
class WordPieceTokenizer:
    """A BERT's pieces: [CLS], text, [SEP], with a vocab.txt such as that of bert-base-uncased.

    Gives the ids of Hugging Face's `BertTokenizer` for text that is cleaned already, except that
    special pieces are plain text where a caption spells them.

    Raises:
      ValueError: the vocabulary is none of a BERT.
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
        """Returns start, text, end and zeros; what does not fit is cut off before the end token."""
        model = _load_wordpiece(self.vocabulary)
        encoded = [[model.start_id, *model.encode(clean_text(text))] for text in texts]
        return _padded(encoded, model.end_id, self.context_length)


def _padded(
    encoded: Sequence[Sequence[int]], end_id: int, context_length: int
) -> Int32[np.ndarray, "N T"]:
    rows = np.zeros((len(encoded), context_length), np.int32)
    for row, ids in zip(rows, encoded, strict=True):
        ids = [*ids[: context_length - 1], end_id]
        row[: len(ids)] = ids
    return rows


def clean_text(text: str) -> str:
    """Repairs wrongly decoded characters and resolves HTML entities (twice escaped ones too).

    The same cleaning as CLIP's; its tokenizer does the rest (lower case, runs of white space).
    """
    if not (text.isascii() and text.isprintable()):  # ftfy is slow and changes nothing otherwise
        text = ftfy.fix_text(text)
    return html.unescape(html.unescape(text)) if "&" in text else text


def make_tokenizer(source: ConfigDict | Vocabulary, context_length: int) -> Tokenizer:
    """Returns the tokenizer that `config.data.tokenizer` names, or that of a vocabulary.

    Raises:
      ValueError: the name is unknown, or the path is missing or no model.
      FileNotFoundError: there is no file at the path.
    """
    if isinstance(source, ConfigDict):
        source = read_vocabulary(source.name, str(source.path))
    if source.name == "clip":
        return ClipTokenizer(context_length)
    if source.name == "sentencepiece":
        return SentencePieceTokenizer(source, context_length)
    return WordPieceTokenizer(source, context_length)


def check_text_config(text_config: ConfigDict, tokenizer: Tokenizer) -> None:
    """Checks that `config.model.text` fits the tokenizer.

    Raises:
      ValueError: vocabulary size, end-of-text id or context length differ.
    """
    wrong = [
        f"config.model.text.{field} is {text_config[field]}, the tokenizer's is {expected}"
        for field in ("vocab_size", "end_of_text_id", "context_length")
        if text_config[field] != (expected := getattr(tokenizer, field))
    ]
    if wrong:
        raise ValueError("; ".join(wrong) + ": set them to the tokenizer's")


def check_packed_length(packed_length: int, tokenizer: Tokenizer) -> None:
    """Raises ValueError unless a row has room for the longest text."""
    if packed_length < tokenizer.context_length:
        raise ValueError(
            f"config.data.packed_length: {packed_length} found, expected at least "
            f"config.model.text.context_length = {tokenizer.context_length}, the longest caption"
        )


def pack_texts(
    texts: Sequence[Int32[np.ndarray, " _"]], packed_length: int, end_of_text_id: int
) -> tuple[Int32[np.ndarray, " L"], Int32[np.ndarray, " N"], int]:
    """Puts the texts of an image behind each other into one row.

    A text that is the same as one before it is stored once. A prompt that does not fit into what
    the row has left becomes the caption, as if the caption had one noun less.

    Args:
      texts: token ids of the caption and then of each prompt; what follows an end token is dropped.
      packed_length: L, at least the caption's length.
      end_of_text_id: the token that ends each text.

    Returns:
      The row, zeros behind its texts; the position of each text's end token in it; the number of
      prompts that did not fit.
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
        overflow += key not in stored
        ends[i] = stored.get(key, ends[0])
    return row, ends, overflow


def text_id(text: str) -> int:
    """Returns a number below 2^31, the same for texts that differ in case and white space only.

    Two of 16,000 different texts share one in 6 of 100 batches.
    """
    folded = " ".join(text.casefold().split())
    return zlib.crc32(folded.encode("utf-8", "surrogatepass")) & 0x7FFFFFFF


def has_start_token(tokenizer: Tokenizer) -> bool:
    """Returns whether texts begin with a token that is no part of them."""
    return bool(tokenizer([""])[0, 0] != tokenizer.end_of_text_id)


def trim(tokens: Int32[np.ndarray, "N T"]) -> Int32[np.ndarray, "N L"]:
    """Cuts off the columns of padding, but keeps a multiple of 8, so that few lengths occur."""
    longest = int(np.flatnonzero(tokens.any(axis=0)).max(initial=0)) + 1
    return tokens[:, : -(-longest // 8) * 8]


def train_sentencepiece(captions: Iterable[str], vocab_size: int, max_captions: int = 0) -> bytes:
    """Trains a unigram vocabulary: case-folded, bytes for rare characters, ids 0 to 3 special.

    Args:
      captions: texts as they are in the data.
      vocab_size: number of pieces, the 4 special ones (padding, unknown, start, end) and the 256
        bytes among them.
      max_captions: train on a random sample of so many (over 100); 0 means all.

    Returns:
      The model file's content.

    Raises:
      ValueError: no caption, or a vocabulary size that they can't fill or that is too small.
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


# Encoders aren't pickled: every process makes its own on first use.
@functools.cache
def _clip_encoder() -> instant_clip_tokenizer.Tokenizer:
    return instant_clip_tokenizer.Tokenizer()


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
