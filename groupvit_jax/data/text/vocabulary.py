"""What a tokenizer's ids depend on: its kind and the content of its file."""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["CLIP", "FILE_NAMES", "Vocabulary", "from_json", "read_vocabulary", "to_json"]

# Kinds of tokenizers with the names of the files that they are exported as; CLIP's has none.
FILE_NAMES = {"clip": "", "sentencepiece": "tokenizer.model", "wordpiece": "vocab.txt"}


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer without its context length, equal to every other that gives the same ids.

    Attributes:
      name: the kind, of `FILE_NAMES`.
      content: of a SentencePiece model or a BERT's vocab.txt; nothing for CLIP.
      origin: where it was read, for error messages.
    """

    name: str
    content: bytes = field(default=b"", repr=False)
    origin: str = field(default="", compare=False)

    @property
    def fingerprint(self) -> str:
        """Tells a vocabulary from another."""
        return hashlib.sha256(self.name.encode() + b"\0" + self.content).hexdigest()[:16]


CLIP = Vocabulary("clip")


def read_vocabulary(name: str, path: str, origin: str = "") -> Vocabulary:
    """Reads what `config.data.tokenizer` names.

    Args:
      name: the kind.
      path: of the file, without influence for CLIP.
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
    """The whole vocabulary as plain values, for checkpoints that are moved without other files."""
    if not vocabulary.content:
        return {"name": vocabulary.name}
    content = base64.b64encode(vocabulary.content).decode()
    return {
        "name": vocabulary.name,
        "fingerprint": vocabulary.fingerprint,
        "content": content,
    }


def from_json(values: Mapping[str, Any], origin: Path) -> Vocabulary:
    """Undoes `to_json`, or reads the file that a description names with "path".

    Args:
      values: the description.
      origin: the file that holds it; a relative path is one beside it.

    Raises:
      FileNotFoundError: the file that it names is not there.
      ValueError: it is damaged, or not the vocabulary that its fingerprint is of.
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
