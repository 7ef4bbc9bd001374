"""The border to files that others wrote: whatever is wrong with one names the file."""

import codecs
import contextlib
import json
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Turn every error about a file into a ValueError that names it.

    Libraries raise whatever a damaged or foreign file leads to: KeyError, struct.error, TypeError,
    RecursionError, ... All mean that the file is unusable; commands show them as one line. Our own
    FileNotFoundErrors, which say what was expected, stay.
    """
    try:
        yield
    except Exception as error:
        message = str(error)
        if isinstance(error, OSError) and error.errno is not None:
            message = f"can't be read ({error.strerror})"
        elif not isinstance(error, ValueError | OSError):
            message = f"damaged or of another kind ({type(error).__name__}: {message})"
        ours = isinstance(error, FileNotFoundError) and error.errno is None
        kind = FileNotFoundError if ours else ValueError
        raise kind(message if str(path) in message else f"{path}: {message}") from error


def read_text(path: Path) -> str:
    """Return the text of a file that an editor, a spreadsheet or another program wrote.

    UTF-8 with or without a byte order mark; UTF-16 with one, or without where every second byte is
    zero, as in Latin text; everything else is read as Windows-1252, which holds Latin-1's letters.
    """
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    # Latin letters have a zero as their second byte in UTF-16: after them in little-endian order.
    for order, zeros in (("utf-16-le", data[1::2]), ("utf-16-be", data[::2])):
        if zeros and zeros.count(0) > len(zeros) // 2:
            return data.decode(order)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def read_table(path: Path) -> Any:
    """Return what a TOML or JSON file that a person wrote holds.

    Raises:
      ValueError: it is neither, or a key is there twice, of which Python would keep the last.
    """
    text = read_text(path)
    if path.suffix.lower() == ".json":
        return json.loads(text, object_pairs_hook=_unique)
    return tomllib.loads(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ValueError(f"{twice[0]!r} found twice, expected each name once")
    return dict(pairs)
