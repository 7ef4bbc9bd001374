"""Splits inputs into chunks: img2dataset's shards, tables of files, COCO captions, TFDS sets.

Each chunk becomes one shard. Content and order of a chunk are a function of the input alone, so any
worker can write any shard at any time, always with the same result.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from groupvit_jax.data.sources import captions_table, tar_scan
from groupvit_jax.data.sources.counts import BLANK, TOO_LONG, Tally
from groupvit_jax.data.sources.pairs import (
    MAX_SAMPLE_BYTES,
    TfdsSource,
    read_parts,
)
from groupvit_jax.data.sources.patterns import expand_pattern
from groupvit_jax.data.sources.samples import (
    MAX_CAPTION_CHARS,
    BrokenSampleError,
    read_fields,
    texts_of,
)
from groupvit_jax.data.sources.tar_scan import NO_CAPTION, NO_IMAGE
from groupvit_jax.data.storage.objects import is_remote
from groupvit_jax.prepare.files import local_copy, publish, read_json, sha256

__all__ = ["Chunk", "Item", "Unmatched", "fingerprint", "plan", "read"]

BROKEN_SAMPLE = "broken sample"
UNREADABLE = "unreadable file"
_SURROGATE = re.compile("[\ud800-\udfff]")
_ROWS_AT_ONCE = 64  # rows of a parquet file held in memory


@dataclasses.dataclass(frozen=True)
class Chunk:
    """The part of the input that one shard is made of.

    Attributes:
      number: index of the chunk and of its shard.
      kind: "tar", "parquet", "table" or "tfds".
      path: the file; for a table, the listing written by `plan`; for TFDS, NAME/SPLIT.
      images: for a table or parquet, the folder of its files.
      columns: for parquet, names of the image and caption columns, "" for the usual ones.
      start: for TFDS, the first index.
      stop: for TFDS, one past the last index.
    """

    number: int
    kind: str
    path: str
    images: str = ""
    columns: tuple[str, str] = ("", "")
    start: int = 0
    stop: int = 0


@dataclasses.dataclass(frozen=True)
class Item:
    """One image with its captions, as found in the input.

    Attributes:
      source: its position in the input, for messages.
      image: the encoded file, None if it is missing.
      captions: stripped captions, without those that can't be used.
      num_captions: number of captions, including those.
      unused: number of those by reason.
      metadata: other fields of its JSON or row.
      problem: the reason why it can't be used, a key of the counts; "" if it can.
      detail: more about the problem.
      num_files: members of a tar that it consists of.
    """

    source: str
    image: bytes | None
    captions: list[str]
    num_captions: int
    unused: dict[str, int] = dataclasses.field(default_factory=dict)
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    problem: str = ""
    detail: str = ""
    num_files: int = 0

    @property
    def tally(self) -> Tally:
        """Return what this sample adds to the counts."""
        return Tally(1, self.num_captions, self.num_files)


@dataclasses.dataclass(frozen=True)
class Unmatched:
    """Members of a tar that belong to no sample, for one reason."""

    reason: str
    tally: Tally


def plan(
    pattern: str,
    images: str,
    columns: tuple[str, str],
    items_per_chunk: int,
    listings: epath.PathLike,
) -> list[Chunk]:
    """Split the input into chunks; the chunks of a table are written to the folder `listings`.

    Args:
      pattern: `--input`: tar and parquet files or tables (globs, braces, comma-separated), or
        tfds:NAME/SPLIT. A tar or parquet file is one chunk.
      images: the folder of the files that a table or parquet file names; "" for absolute paths.
      columns: names of the image and caption columns, "" for the usual names.
      items_per_chunk: for tables and TFDS.
      listings: a folder that the workers can read.

    Raises:
      ValueError: the input has another type, or is empty; OSError: it can't be read.
    """
    if pattern.startswith("tfds:"):
        path = pattern.removeprefix("tfds:")
        spans = _spans(len(_open_tfds(path)), items_per_chunk)
        chunks = [Chunk(n, "tfds", path, start=a, stop=b) for n, (a, b) in enumerate(spans)]
    else:
        paths = _expand(pattern)
        kinds = {_kind(path) for path in paths}
        if images and not epath.Path(images).is_dir():
            raise FileNotFoundError(f"--images={images}: expected a folder")
        if kinds == {"table"}:
            chunks = _plan_table(paths, images, columns, items_per_chunk, epath.Path(listings))
        elif "table" in kinds:
            raise ValueError(f"--input={pattern}: tables among other files, expected either")
        else:
            chunks = [Chunk(n, _kind(p), p, images, columns) for n, p in enumerate(paths)]
    if not chunks:
        raise ValueError(f"--input={pattern}: no image in it")
    return chunks


def fingerprint(pattern: str) -> str:
    """Return a fingerprint that detects a changed input: a table's content, files and sizes."""
    if pattern.startswith("tfds:"):
        path = pattern.removeprefix("tfds:")
        identity = f"{len(_open_tfds(path))} {path}".encode()
    else:
        paths = _expand(pattern)
        if {_kind(path) for path in paths} == {"table"}:
            hashes = [sha256(path) for path in paths]
            return (
                hashes[0]
                if len(paths) == 1
                else hashlib.sha256("".join(hashes).encode()).hexdigest()
            )
        sizes = [[path, epath.Path(path).stat().length] for path in paths]
        identity = json.dumps(sizes).encode()
    return hashlib.sha256(identity).hexdigest()


def read(chunk: Chunk) -> Iterator[Item | Unmatched]:
    """Yield a chunk's items in order, reading one or a few at a time, then what is unmatched.

    Raises:
      ValueError: a parquet file lacks a column or is damaged; OSError: a file can't be read.
    """
    readers = {"tar": _read_tar, "parquet": _read_parquet, "table": _read_table, "tfds": _read_tfds}
    return readers[chunk.kind](chunk)


def _expand(pattern: str) -> list[str]:
    if not is_remote(pattern):
        return expand_pattern(pattern, "--input")
    folder, _, name = pattern.rpartition("/")
    paths = sorted(os.fspath(path) for path in epath.Path(folder).glob(name))
    if not paths:
        raise FileNotFoundError(f"--input={pattern}: no file matches it")
    return paths


def _kind(path: str) -> str:
    """Return the kind of a file's chunk; upper-case endings count too."""
    suffix = Path(path).suffix.lower()
    if suffix in captions_table.TABLES:
        return "table"
    if suffix not in (".tar", ".parquet"):
        expected = f"tar, parquet, {', '.join(captions_table.TABLES)} or tfds:NAME/SPLIT"
        packed = suffix in (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip")
        hint = "; compressed files must be unpacked" if packed else ""
        raise ValueError(f"--input: {path}: expected {expected}{hint}")
    return suffix[1:]


def _spans(length: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _plan_table(
    paths: Sequence[str],
    images: str,
    columns: tuple[str, str],
    items_per_chunk: int,
    listings: epath.Path,
) -> list[Chunk]:
    with contextlib.ExitStack() as stack:
        local = [stack.enter_context(local_copy(path)) for path in paths]
        items = captions_table.read_captions(local, *columns)
    if not images and items and not os.path.isabs(items[0].file) and not is_remote(items[0].file):
        raise FileNotFoundError(
            f"--images=: expected the folder of the table's files, such as {items[0].file[:80]!r}"
        )
    chunks = []
    for number, (start, stop) in enumerate(_spans(len(items), items_per_chunk)):
        listing = listings / f"{number:05d}.items.json"
        rows = [[item.file, item.captions] for item in items[start:stop]]
        publish(listing, json.dumps(rows).encode())
        chunks.append(Chunk(number, "table", os.fspath(listing), images))
    return chunks


def _read_table(chunk: Chunk) -> Iterator[Item]:
    for file, texts in read_json(epath.Path(chunk.path)):
        yield _file_item(file, chunk.images, file, texts)


def _file_item(
    source: str,
    folder: str,
    file: str,
    texts: Sequence[Any],
    metadata: dict[str, Any] | None = None,
) -> Item:
    try:
        image = _read_file(folder, file)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        detail = getattr(error, "strerror", None) or str(error)
        return Item(source, None, [], len(texts), problem=UNREADABLE, detail=detail)
    return _item(source, image, texts, metadata)


def _read_file(folder: str, file: str) -> bytes:
    """Read an image file: an absolute path, or one in the folder and nowhere else.

    Links are followed: whoever put them into the folder wants their files in it.
    """
    if file.startswith(("http://", "https://")):
        raise ValueError("a URL; fetch it with img2dataset first, see docs/prepare.md")
    if not folder and not os.path.isabs(file) and not is_remote(file):
        raise ValueError("a relative path, expected its folder as --images")
    path = epath.Path(folder) / file
    inside = os.path.normpath(os.fspath(path)).startswith(
        os.path.join(os.path.normpath(folder), "")
    )
    if folder and os.path.normpath(folder) != "." and not inside:
        raise ValueError(f"outside of --images={folder}")
    if not is_remote(os.fspath(path)) and path.exists() and not os.path.isfile(path):
        raise OSError("a folder, device or pipe, expected a file")
    if path.stat().length > MAX_SAMPLE_BYTES:
        raise OSError(f"more than {MAX_SAMPLE_BYTES} bytes")
    return path.read_bytes()


def _short_name(path: str) -> str:
    """Return folder and file name, because shards of different sets share file names."""
    return "/".join(Path(path).parts[-2:])


def _read_tar(chunk: Chunk) -> Iterator[Item | Unmatched]:
    name = _short_name(chunk.path)
    with local_copy(chunk.path) as path:
        scanned = tar_scan.scan(path)
        problems = tar_scan.problems(scanned.index)
        with open(path, "rb") as file:
            for entry, problem in zip(scanned.index, problems, strict=True):
                source = f"{name}: {entry['key'].decode('utf-8', 'replace')}"
                if problem:
                    num_captions, num_files = int(entry["size"][1] >= 0), (entry["size"] >= 0).sum()
                    detail = scanned.note if problem == tar_scan.CUT_OFF else ""
                    what: dict[str, Any] = dict(
                        problem=problem, detail=detail, num_files=int(num_files)
                    )
                    yield Item(source, None, [], num_captions, **what)
                else:
                    yield _tar_item(file.fileno(), entry["offset"], entry["size"], source)
    for reason, fields in scanned.counts.get("unmatched", {}).items():
        yield Unmatched(reason, Tally(**fields))


def _tar_item(fd: int, offsets: Any, sizes: Any, source: str) -> Item:
    num_files = int((sizes >= 0).sum())
    try:
        image, text, metadata = read_parts(fd, offsets, sizes)
        fields = read_fields(metadata)
        item = _item(source, image, texts_of(text, fields), fields)
        return dataclasses.replace(item, num_files=num_files)
    except BrokenSampleError as error:
        captions = int(sizes[1] >= 0)
        what: dict[str, Any] = dict(problem=BROKEN_SAMPLE, detail=str(error), num_files=num_files)
        return Item(source, None, [], captions, **what)


def _read_parquet(chunk: Chunk) -> Iterator[Item]:
    import pyarrow
    from pyarrow import parquet

    name = _short_name(chunk.path)
    try:
        with local_copy(chunk.path) as path, parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            usual = (
                [*tar_scan.IMAGE_EXTENSIONS, *captions_table.IMAGE_COLUMNS],
                captions_table.CAPTION_COLUMNS,
            )
            image, caption = (
                columns[captions_table.find_column(chunk.path, columns, flag, wanted, names)]
                for flag, wanted, names in zip(
                    ("image_column", "caption_column"), chunk.columns, usual, strict=True
                )
            )
            number = 0
            for batch in file.iter_batches(_ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    where = f"{name}: row {number}"
                    yield _parquet_item(where, row, image, caption, chunk.images)
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{chunk.path}: can't be read as parquet: {error}") from error


def _parquet_item(source: str, row: dict[str, Any], image: str, caption: str, images: str) -> Item:
    data, texts = row.pop(image), row.pop(caption)
    texts = texts if isinstance(texts, list) else [texts]
    metadata = {key: value for key, value in row.items() if _is_json(value)}
    if isinstance(data, dict):  # the format of Hugging Face datasets: bytes and path
        data = data.get("bytes") or data.get("path")
    if isinstance(data, str):
        return _file_item(source, images, data, texts, metadata)
    if data is not None and not isinstance(data, bytes):
        detail = f"{type(data).__name__} found, expected the bytes or the path of an image file"
        return Item(source, None, [], len(texts), problem=NO_IMAGE, detail=detail)
    if data is not None and len(data) > MAX_SAMPLE_BYTES:
        return Item(source, None, [], 0, problem=BROKEN_SAMPLE, detail=f"{len(data)} bytes")
    return _item(source, data, texts, metadata)


def _is_json(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)  # pandas writes NaN for a missing value
    return isinstance(value, str | int | None)


def _open_tfds(path: str) -> TfdsSource:
    name, _, split = path.rpartition("/")
    if not name:
        raise ValueError(f"--input=tfds:{path}: expected tfds:NAME/SPLIT or tfds:FOLDER/SPLIT")
    folder = epath.Path(name).expanduser()
    data_dir = os.fspath(folder) if (folder / "features.json").exists() else ""
    return TfdsSource("" if data_dir else name, split, data_dir, "--input")


def _read_tfds(chunk: Chunk) -> Iterator[Item]:
    source = _open_tfds(chunk.path)
    for index in range(chunk.start, chunk.stop):
        try:
            sample = source[index]
        except BrokenSampleError as error:
            where = source.locate(index)
            yield Item(where, None, [], 0, problem=BROKEN_SAMPLE, detail=str(error))
        else:
            yield _item(f"{chunk.path}: {sample['key']}", sample["image"], sample["captions"])


def _item(
    source: str,
    image: bytes | None,
    texts: Sequence[Any],
    metadata: dict[str, Any] | None = None,
) -> Item:
    # JSON may contain lone surrogates, which can't be encoded in a file.
    clean = [_SURROGATE.sub("\ufffd", t).strip() for t in texts if isinstance(t, str)]
    captions = [text for text in clean if 0 < len(text) <= MAX_CAPTION_CHARS]
    num_long = sum(len(text) > MAX_CAPTION_CHARS for text in clean)
    num_blank = len(texts) - len(captions) - num_long
    unused = {reason: n for reason, n in ((BLANK, num_blank), (TOO_LONG, num_long)) if n}
    problem = "" if captions else TOO_LONG if num_long else NO_CAPTION
    if not image:
        problem = NO_IMAGE
    return Item(source, image, captions, len(texts), unused, metadata or {}, problem)
