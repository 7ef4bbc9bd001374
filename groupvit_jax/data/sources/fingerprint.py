"""Tells whether a set of images is still the one that was evaluated."""

import concurrent.futures
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Files up to this size, which masks are, count as a whole; of larger ones the size and three parts,
# since a photo that is edited hardly keeps size, head, middle and end.
_WHOLE, _PART = 2**18, 2**14
_READERS = 16


def fingerprint(source: Any) -> str:
    """Return a hash of the files of a source: their names below their common folder, and content.

    Reads all of small files and 48 KiB of each large one: about a second for 5,000 photos that the
    system has in memory.

    Args:
      source: has `files()`, or else `len` and `locate`, whose texts count then.
    """
    if hasattr(source, "files"):
        return fingerprint_of_files(source.files())
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(f"{source.locate(index)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def fingerprint_of_files(files: list[Path]) -> str:
    """Return a hash of files; see `fingerprint`."""
    digest = hashlib.sha256()
    root = os.path.commonpath([file.parent for file in files]) if files else ""
    for file, content in zip(files, _contents(files), strict=True):
        name = os.path.relpath(file, root)
        digest.update(name.encode(errors="surrogateescape") + b"\0" + content)
    return digest.hexdigest()


def _contents(files: list[Path]) -> Iterator[bytes]:
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        yield from pool.map(_content, files)


def _content(path: Path) -> bytes:
    """Return a hash of one file; a file that can't be read is named when it is evaluated."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            digest = hashlib.sha256(str(size).encode())
            if size <= _WHOLE:
                digest.update(file.read())
            else:
                for place in (0, size // 2, size - _PART):
                    file.seek(place)
                    digest.update(file.read(_PART))
    except OSError as error:
        return str(error.strerror).encode()
    return digest.digest()
