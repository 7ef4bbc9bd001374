"""Vocabularies: the kind of a tokenizer and the content of its file."""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["CLIP", "FILE_NAMES", "Vocabulary", "from_json", "read_vocabulary", "to_json"]

# File name in exports by kind of tokenizer; CLIP's vocabulary is part of the package.
FILE_NAMES = {"clip": "", "sentencepiece": "tokenizer.model", "wordpiece": "vocab.txt"}


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer without its context length; equal vocabularies give the same ids.

    Attributes:
      name: the kind, a key of `FILE_NAMES`.
      content: a SentencePiece model or a BERT's vocab.txt; empty for CLIP.
      origin: its file or configuration field, for error messages.
    """

    name: str
    content: bytes = field(default=b"", repr=False)
    origin: str = field(default="", compare=False)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of SHA-256 over kind and content."""
        # The zero byte keeps kind and content apart.
        return hashlib.sha256(self.name.encode() + b"\0" + self.content).hexdigest()[:16]


CLIP = Vocabulary("clip")


def read_vocabulary(name: str, path: str, origin: str = "") -> Vocabulary:
    """Read a vocabulary file.

    Args:
      name: the kind.
      path: the file; ignored for CLIP.
      origin: for error messages; the configuration's field by default.

    Raises:
      ValueError: there is no such kind, or the path is missing.
      FileNotFoundError: there is no file at the path.
    """
    if name not in FILE_NAMES:
        raise ValueError(
            f"config.data.tokenizer.name is {name!r}; expected one of {', '.join(FILE_NAMES)}"
        )
    if name == "clip":
        return CLIP
    if not path:
        raise ValueError(
            "config.data.tokenizer.path is empty; expected a "
            + "SentencePiece model (`python -m launch.train_tokenizer` makes one of your captions)"
            * (name == "sentencepiece")
            + "vocab.txt of a BERT" * (name == "wordpiece")
        )
    origin = origin or f"config.data.tokenizer.path={path}"
    if not Path(path).is_file():
        raise FileNotFoundError(f"{origin}: there is no such file")
    return Vocabulary(name, Path(path).read_bytes(), origin)


def to_json(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the whole vocabulary as JSON values, so that a checkpoint needs no other file."""
    if not vocabulary.content:
        return {"name": vocabulary.name}
    content = base64.b64encode(vocabulary.content).decode()
    return {
        "name": vocabulary.name,
        "fingerprint": vocabulary.fingerprint,
        "content": content,
    }


def from_json(values: Mapping[str, Any], origin: Path) -> Vocabulary:
    """Reverse `to_json`, or read the file given by the key "path".

    Args:
      values: a description from `to_json`, or a name and a path.
      origin: the file of the description; relative paths start from its folder.

    Raises:
      FileNotFoundError: there is no file at the path.
      ValueError: the content is damaged or doesn't match the fingerprint.
    """
    name = values.get("name")
    if "content" not in values:
        path = origin.parent / values.get("path", "")
        vocabulary = read_vocabulary(str(name), str(path), str(path))
    else:
        try:
            content = base64.b64decode(values["content"], validate=True)
        except (binascii.Error, TypeError) as error:
            raise ValueError(f"{origin}: tokenizer.content is damaged: {error}") from error
        vocabulary = Vocabulary(str(name), content, str(origin))
    expected = values.get("fingerprint", vocabulary.fingerprint)
    if vocabulary.fingerprint != expected:
        raise ValueError(
            f"{vocabulary.origin}: a vocabulary with fingerprint {vocabulary.fingerprint} found, "
            f"expected the {expected} that the model was trained with"
        )
    return vocabulary
