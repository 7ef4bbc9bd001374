"""WordPiece as BERT has it: words by white space and punctuation, each the longest pieces."""

import functools
import re
import unicodedata

# Blocks of ideographs, each of which is a word (not Hangul, Hiragana or Katakana).
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
# All ASCII that is neither letter, digit nor white space counts as punctuation.
_WORD = re.compile(r"[!-/:-@\[-`{-~]|[^\s!-/:-@\[-`{-~]+")
_ASCII_CONTROLS = dict.fromkeys([*range(9), 11, 12, *range(14, 32), 127])
_LONGEST_WORD = 100  # characters; a longer one is unknown
_SPECIAL = re.compile(r"\[[A-Za-z]+\d*\]")
_WORDS_KEPT = 2**16


class WordPiece:
    """The vocabulary of a BERT.

    Text is lower-cased and loses its accents unless the vocabulary has pieces with capitals.
    """

    def __init__(self, content: bytes) -> None:
        """Reads a vocab.txt, whose line i is piece i.

        Raises:
          ValueError: it is no text, lacks a special piece, or [PAD] isn't the first.
        """
        try:
            lines = content.decode().removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"no UTF-8 text ({error.reason})") from error
        self._ids = {line.removesuffix("\r"): i for i, line in enumerate(lines)}
        for piece in ("[PAD]", "[UNK]", "[CLS]", "[SEP]"):
            if piece not in self._ids:
                raise ValueError(f"no line is {piece}, expected one piece on each line")
        if self._ids["[PAD]"] != 0:
            raise ValueError(f"[PAD] has id {self._ids['[PAD]']}, expected 0, the padding's")
        self.size = len(lines)
        self.start_id, self.end_id = self._ids["[CLS]"], self._ids["[SEP]"]
        ordinary = (piece for piece in self._ids if not _SPECIAL.fullmatch(piece))
        self.lowercase = all(piece == piece.lower() for piece in ordinary)
        self._pieces = functools.lru_cache(_WORDS_KEPT)(self._split)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without start and end; special pieces in it are plain text."""
        return [i for word in split_words(text, self.lowercase) for i in self._pieces(word)]

    def _split(self, word: str) -> tuple[int, ...]:
        """Takes the longest piece from the left again and again; unknown if none fits."""
        unknown = (self._ids["[UNK]"],)
        if len(word) > _LONGEST_WORD:
            return unknown
        found, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((e for e in ends if prefix + word[start:e] in self._ids), None)
            if end is None:
                return unknown
            found.append(self._ids[prefix + word[start:end]])
            start = end
        return tuple(found)


def split_words(text: str, lowercase: bool) -> list[str]:
    """Returns words, punctuation marks and ideographs in order.

    Args:
      text: any text; control characters are dropped.
      lowercase: whether capitals and accents go, too.
    """
    if text.isascii():
        text = text.translate(_ASCII_CONTROLS)
        return _WORD.findall(text.lower() if lowercase else text)
    if lowercase:
        text = unicodedata.normalize("NFD", text)
    return _WORD.findall("".join(_normalise(c, lowercase) for c in text))


@functools.cache
def _normalise(character: str, lowercase: bool) -> str:
    category = unicodedata.category(character)
    if category.startswith("Z") or character in "\t\n\r":
        return " "
    if category in ("Cc", "Cf", "Co", "Cs") or character == "\N{REPLACEMENT CHARACTER}":
        return ""
    if lowercase and category == "Mn":
        return ""
    if category.startswith("P") or _is_ideograph(character):
        return f" {character} "
    return character.lower() if lowercase else character


def _is_ideograph(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in _IDEOGRAPHS)
