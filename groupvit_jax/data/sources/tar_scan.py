"""Scans the headers of a tar shard: which members form samples, and which belong to none.

Memory and time are bounded by the size of the file, whatever its headers say.
"""

import dataclasses
import io
import os
import re
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from groupvit_jax.data.sources.counts import Counts, Tally
from groupvit_jax.data.storage import objects
from groupvit_jax.data.storage.objects import StoredObject

__all__ = ["IMAGE_EXTENSIONS", "PARTS", "Scan", "break_of", "num_complete", "problems", "scan"]

PARTS = ("image", "txt", "json")
# The last is written by `launch.prepare --encoding=pixels`; a plain "npy" may hold anything, such
# as features.
IMAGE_EXTENSIONS = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"),
    "rgb.npy",
)
_PART_OF_EXTENSION = dict.fromkeys(IMAGE_EXTENSIONS, 0) | {"txt": 1, "json": 2}

# The index stores every key at the length of the longest: one of a megabyte would take gigabytes.
MAX_KEY_BYTES = 1024
# Of an extended header: a name and attributes. tarfile allocates whatever a header declares.
MAX_HEADER_BYTES = 2**16
# tarfile copies the global fields of a PAX archive for each of its members.
MAX_GLOBAL_FIELDS = 100
# tarfile searches extended headers with an expression that takes quadratic time in these.
_LONG_NUMBER = re.compile(rb"\d{200}")
_BLOCK = 512

# Samples that can't be used.
NO_IMAGE, NO_CAPTION = "no image", "no caption"
CUT_OFF = "lost where a tar breaks off"
SCATTERED = "image and caption not side by side in the tar"
OTHER_FOLDER = "image and caption in different folders"
# Members that belong to no sample.
_REPEATED = "repeated key"
_LINK = "hard or symbolic link"
_SPECIAL = "sparse or special file"
_NO_KEY = "no key or no ending in the name"
_OTHER_ENDING = "ending that is not read"
_LONG_NAME = f"name longer than {MAX_KEY_BYTES} bytes"

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\3\4": "zip",
}


@dataclasses.dataclass(frozen=True)
class Scan:
    """The samples of a shard and the account of all its members.

    Attributes:
      index: one entry per sample: "key", and "offset" and "size" of each of `PARTS` (size -1 for a
        missing one). An entry without members stands for what a truncated archive has lost.
      counts: `Counts.as_dict` of all members: written (complete samples), dropped and unmatched.
      note: what the file is if it isn't a tar; "" if it is or isn't known.
    """

    index: np.ndarray
    counts: dict[str, Any]
    note: str


def scan(shard: str | StoredObject) -> Scan:
    """Scan a tar file's headers.

    Objects are streamed, because three small sequential requests per sample would take much longer
    than transferring the bytes in between.

    Members are grouped by WebDataset's rule: adjacent members whose paths agree up to the first dot
    of the file name form a sample. From a truncated archive, complete members before the break are
    kept, and an entry without members stands for the lost rest, so that it is counted.
    """
    grouping = _Grouping()
    with _open(shard) as file:
        note = _compression(file)
        headers = _Headers(file)
        for member in headers:
            grouping.add(member)
    samples = list(grouping.samples)
    if headers.break_at is not None:
        key = b"(breaks off at byte %d)" % headers.break_at
        samples.append((key, np.zeros(3, np.int64), np.full(3, -1, np.int64)))
    key_bytes = max([len(key) for key, _, _ in samples], default=1)
    dtype = np.dtype([("key", f"S{key_bytes}"), ("offset", "<i8", 3), ("size", "<i8", 3)])
    index = np.array(samples, dtype)
    return Scan(index, _account(index, grouping, note), note)


def _open(shard: str | StoredObject) -> io.BufferedReader:
    if isinstance(shard, StoredObject):
        # Buffered for tarfile's single blocks only: the reader itself holds megabytes.
        return io.BufferedReader(objects.ObjectReader(shard), _BLOCK)
    return open(shard, "rb")


def _compression(file: io.BufferedReader) -> str:
    start = file.read(8)
    file.seek(0)
    found = [name for magic, name in _COMPRESSED.items() if start.startswith(magic)]
    return f"compressed with {found[0]}; unpack it, members are read in place" if found else ""


class _Headers:
    """Iterates over the complete members of an archive, folders left out.

    Attributes:
      break_at: at the end, the byte where a truncated archive breaks off, else None.
    """

    def __init__(self, file: io.BufferedReader):
        self._file = file
        self._file_size = file.seek(0, os.SEEK_END)
        file.seek(0)
        self.break_at: int | None = None

    def read(self, size: int) -> bytes:
        """Read for tarfile, which reads nothing but headers, of whatever length one declares."""
        if size > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {size} bytes, more than {MAX_HEADER_BYTES}")
        content = self._file.read(size)
        if size > _BLOCK and _LONG_NUMBER.search(content):
            raise ValueError("a header with a number of hundreds of digits")
        return content

    def seek(self, position: int) -> int:
        """Seek for tarfile."""
        return self._file.seek(position)

    def tell(self) -> int:
        """Return the position for tarfile."""
        return self._file.tell()

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        end = 0  # of the last complete member, where the next header or the closing zeros should be
        try:
            with tarfile.open(fileobj=self, mode="r:") as archive:  # type: ignore[call-overload]
                while (member := archive.next()) is not None:
                    archive.members.clear()  # which would hold every header
                    if self._is_cut(member, archive.offset):
                        self.break_at = member.offset
                        return
                    if len(archive.pax_headers) > MAX_GLOBAL_FIELDS:
                        raise ValueError(f"more than {MAX_GLOBAL_FIELDS} global fields")
                    end = archive.offset
                    if not member.isdir():
                        yield member
        # ValueError: numbers in extended headers; RecursionError: headers of headers of headers.
        except (tarfile.TarError, ValueError, RecursionError):
            self.break_at = min(end, self._file_size)
            return
        # tarfile treats any unreadable header but the first as the end of the archive.
        self._file.seek(end)
        if self._file.read(_BLOCK) != bytes(_BLOCK):
            self.break_at = min(end, self._file_size)

    def _is_cut(self, member: tarfile.TarInfo, next_offset: int) -> bool:
        # tarfile accepts a negative size and would then seek backwards in an endless loop.
        if member.size < 0 or next_offset <= member.offset:
            return True
        stored = next_offset - _BLOCK if member.issparse() else member.offset_data + member.size
        return member.isreg() and stored > self._file_size


class _Grouping:
    """Groups members into samples and counts the rest by reason."""

    def __init__(self) -> None:
        self.samples: list[tuple[bytes, np.ndarray, np.ndarray]] = []
        self.counts = Counts()  # of members without a sample
        self.num_files = 0

    def add(self, member: tarfile.TarInfo) -> None:
        """Add the next member."""
        self.num_files += 1
        folder, _, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        part = _PART_OF_EXTENSION.get(extension.lower())
        key = os.path.join(folder, stem).encode("utf-8", "surrogateescape")
        reason = _reason(member, key, stem, extension, part)
        if not reason and part is not None:
            if not self.samples or self.samples[-1][0] != key:
                self.samples.append((key, np.zeros(3, np.int64), np.full(3, -1, np.int64)))
            _, offsets, sizes = self.samples[-1]
            if sizes[part] < 0:
                offsets[part], sizes[part] = member.offset_data, member.size
                return
            reason = _REPEATED
        self.counts.leave(reason, Tally(int(part == 0), int(part == 1), 1, [_shown(member.name)]))


def _shown(name: str) -> str:
    """Return the end of a name in printable characters, as an example in messages."""
    short = name if len(name) <= 80 else f"...{name[-77:]}"
    return "".join(c if c.isprintable() else "\ufffd" for c in short)


def _reason(
    member: tarfile.TarInfo, key: bytes, stem: str, extension: str, part: int | None
) -> str:
    """Return why a member can't be part of a sample, or ""."""
    if member.islnk() or member.issym():
        return _LINK
    if not member.isreg() or member.issparse():  # bytes of sparse files aren't stored in one piece
        return _SPECIAL
    if not stem or not extension:
        return _NO_KEY
    if part is None:
        return _OTHER_ENDING
    return _LONG_NAME if len(key) > MAX_KEY_BYTES else ""


def _account(index: np.ndarray, grouping: _Grouping, note: str) -> dict[str, Any]:
    """Return the counts of all members."""
    counts = grouping.counts
    present = np.asarray(index["size"] >= 0)
    for entry, held, problem in zip(index, present, problems(index), strict=True):
        key = _shown(entry["key"].decode("utf-8", "replace"))
        # What a truncated archive has lost counts as one image.
        num_images = 1 if problem == CUT_OFF else int(held[0])
        item = Tally(num_images, int(held[1:].any()), int(held.sum()))
        if problem:
            item.examples = [f"{key}: {note}" if note else key]
            counts.drop(problem, item)
        else:
            counts.write(item)
    if counts.read.files != grouping.num_files:
        raise ValueError(f"{grouping.num_files} members read, {counts.read.files} accounted for")
    return counts.as_dict()


def problems(index: np.ndarray) -> list[str]:
    """Return for each sample of an index why it is incomplete; "" for a complete one."""
    present = np.asarray(index["size"] >= 0)
    image, caption = present[:, 0], np.asarray(present[:, 1:].any(axis=1))
    found = np.full(len(index), "", object)
    found[image & ~caption] = NO_CAPTION
    found[caption & ~image] = NO_IMAGE
    found[~caption & ~image] = CUT_OFF
    rows = np.flatnonzero(image != caption)
    keys = index["key"][rows].tolist()
    # In this order: keys that agree with their folders (`bytes` changes nothing) are only apart.
    for reason, shorten in ((OTHER_FOLDER, os.path.basename), (SCATTERED, bytes)):
        with_image = {shorten(k) for k, row in zip(keys, rows, strict=True) if image[row]}
        with_caption = {shorten(k) for k, row in zip(keys, rows, strict=True) if caption[row]}
        apart = with_image & with_caption
        found[[row for k, row in zip(keys, rows, strict=True) if shorten(k) in apart]] = reason
    return found.tolist()


def break_of(index: np.ndarray) -> int | None:
    """Return the byte at which the indexed archive is truncated; None if it is complete."""
    if len(index) and (index[-1]["size"] < 0).all():
        # From the key that `scan` gave it, "(breaks off at byte N)".
        return int(index[-1]["key"].split()[-1][:-1])
    return None


def num_complete(index: np.ndarray) -> int:
    """Return the number of samples with an image and something that may hold a caption."""
    present = np.asarray(index["size"] >= 0)
    return int((present[:, 0] & present[:, 1:].any(axis=1)).sum())
