"""A noun bank: the most frequent nouns of the captions with frozen embeddings, as one .npz file."""

import dataclasses
import functools
import io
import os
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from groupvit_jax.data.text import nouns as nouns_lib

__all__ = ["MOST_NOUNS", "NOUN_KIND", "NounBank", "read_noun_bank", "write_noun_bank"]

# Nouns of a caption that are looked up; the first ones, if there are more.
MOST_NOUNS = 16
NOUN_KIND = "words"  # of `nouns.KINDS`
_FIELD = "config.data.noun_bank"


@dataclasses.dataclass(frozen=True)
class NounBank:
    """The nouns and their embeddings, of length one.

    Attributes:
      nouns: in lower case, the most frequent first.
      embeddings: float32, by noun.
    """

    nouns: tuple[str, ...]
    embeddings: Float[np.ndarray, "N D"]

    @functools.cached_property
    def rows(self) -> Mapping[str, int]:
        """Row of each noun."""
        return {noun: row for row, noun in enumerate(self.nouns)}


def rows_of(
    rows: Mapping[str, int], caption: str, known: Sequence[str] | None = None
) -> Int[np.ndarray, "M"]:
    """Return the rows of a caption's nouns, each once, then -1: Int32 of `MOST_NOUNS`.

    Args:
      rows: `NounBank.rows`.
      caption: the text.
      known: its nouns of `NOUN_KIND`, if they are known; saves the tagging.
    """
    words = nouns_lib.nouns(caption) if known is None else known
    found = dict.fromkeys(rows[w.casefold()] for w in words if w.casefold() in rows)
    padded = [*found, *[-1] * MOST_NOUNS][:MOST_NOUNS]
    return np.array(padded, np.int32)


def write_noun_bank(
    path: epath.PathLike, nouns: Sequence[str], embeddings: Float[np.ndarray, "N D"]
) -> None:
    """Write a bank, a .npz file of the arrays `nouns` and `embeddings`."""
    file = io.BytesIO()
    np.savez(file, nouns=np.array(nouns), embeddings=np.asarray(embeddings, np.float32))
    epath.Path(path).write_bytes(file.getvalue())


def read_noun_bank(path: epath.PathLike) -> NounBank:
    """Read a bank and normalise its embeddings.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it holds something else.
    """
    name = os.fspath(path)
    try:
        content = epath.Path(path).expanduser().read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{_FIELD}: {name!r} found, where there is no file") from error
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            nouns, embeddings = arrays["nouns"], arrays["embeddings"]
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        expected = "a .npz file of the arrays nouns and embeddings (launch.prepare --noun_bank)"
        raise ValueError(f"{_FIELD}: {name!r} found ({error}), expected {expected}") from error
    fits = nouns.ndim == 1 and nouns.dtype.kind == "U" and embeddings.ndim == 2
    if not fits or not len(nouns) or len(nouns) != len(embeddings):
        found = f"nouns {nouns.dtype}{list(nouns.shape)}, embeddings {list(embeddings.shape)}"
        raise ValueError(f"{_FIELD}: {name!r} with {found} found, expected N texts and [N, D]")
    embeddings = embeddings.astype(np.float32)
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not lengths.all():
        found = "an embedding that is zero or not finite"
        raise ValueError(f"{_FIELD}: {name!r} with {found} found, expected a direction a noun")
    return NounBank(tuple(noun.casefold() for noun in nouns.tolist()), embeddings / lengths)
