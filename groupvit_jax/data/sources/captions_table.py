"""Tables of image files and captions: CSV, TSV, JSON lines, COCO's caption JSON, lists of objects.

Tables come from spreadsheets, scripts and the web, so whatever is doubtful is an error that names
the line: a stray quote would otherwise swallow all rows up to the next one.
"""

import codecs
import csv
import itertools
import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["CAPTION_COLUMNS", "IMAGE_COLUMNS", "TABLES", "ImageCaptions", "find_column"]
__all__ += ["read_captions", "read_texts"]

TABLES = (".csv", ".tsv", ".txt", ".json", ".jsonl")
IMAGE_COLUMNS = ("image", "file", "filename", "file_name", "filepath", "path", "image_path")
CAPTION_COLUMNS = ("caption", "captions", "text", "title", "sentence", "comment")
_URL_COLUMNS = ("url", "image_url", "uri")

# Longer ones are no captions: a binary file, or a quote that is never closed.
MAX_LINE_CHARS = 2**22
MAX_FIELD_CHARS = 2**20
# Parsed, JSON takes ten times its size; COCO's largest file has 0.5 GB.
MAX_JSON_BYTES = 2**30

# A column that is wanted: its flag, its name or "", and the usual names.
_Wanted = tuple[str, str, Sequence[str]]


@dataclass(frozen=True)
class ImageCaptions:
    """An image file with all its captions."""

    file: str
    captions: list[str]


def read_captions(
    path: str | Sequence[str], image_column: str = "", caption_column: str = ""
) -> list[ImageCaptions]:
    """Read tables with a header, JSON lines, a JSON list of objects, or COCO's JSON.

    Args:
      path: the file or files; several rows of one image are several captions of it.
      image_column: the column with the image files; by default one of `IMAGE_COLUMNS`.
      caption_column: likewise, of `CAPTION_COLUMNS`.

    Returns:
      One entry per image, in the order of their first rows.

    Raises:
      ValueError: a column can't be found, or a row is malformed; names the file and the line.
    """
    wanted: list[_Wanted] = [("image_column", image_column, IMAGE_COLUMNS)]
    wanted += [("caption_column", caption_column, CAPTION_COLUMNS)]
    captions: dict[str, list[str]] = {}
    for each in [path] if isinstance(path, str) else path:
        for where, (file, caption) in _rows(each, wanted):
            if not isinstance(file, str):
                raise ValueError(f"{where}: {file!r} found, expected the path of an image")
            captions.setdefault(file.strip(), []).extend(_texts(caption))
    return [ImageCaptions(file, texts) for file, texts in captions.items()]


def read_texts(path: str, caption_column: str = "") -> Iterator[str]:
    """Stream only the captions; see `read_captions`."""
    for _, (caption,) in _rows(path, [("caption_column", caption_column, CAPTION_COLUMNS)]):
        yield from _texts(caption)


def _texts(caption: Any) -> list[str]:
    """Return a cell's captions; what is no text counts as a blank one."""
    texts = caption if isinstance(caption, list) else [caption]
    return [text if isinstance(text, str) else "" for text in texts]


def find_column(
    path: str, header: Sequence[str], flag: str, wanted: str, usual: Sequence[str]
) -> int:
    """Return the index of the column `wanted`, or of the first of the usual names if it is empty.

    Raises:
      ValueError: there is none; the message names the file and the flag.
    """
    lower = [name.lower() for name in header]
    if wanted in header:
        return header.index(wanted)
    places = [lower.index(name) for name in usual if name in lower]
    shown = str([name[:40] for name in header[:20]])
    if wanted:
        raise ValueError(f"--{flag}={wanted}: {path} has columns {shown}")
    if not places:
        expected = f"one of {', '.join(usual)} (or say --{flag})"
        if flag == "image_column" and set(lower) & set(_URL_COLUMNS):
            expected += "; images at URLs are fetched with img2dataset first, see docs/prepare.md"
        raise ValueError(f"{path}: columns {shown}, expected {expected}")
    return places[0]


def _rows(path: str, wanted: Sequence[_Wanted]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield for each row that isn't blank where it is, and the values of the wanted columns."""
    # A table is read up to three times, which a pipe doesn't allow.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{path}: a folder, device or pipe, expected a file")
    suffix = Path(path).suffix.lower()
    if suffix == ".json":
        yield from _json_rows(path, wanted)
    elif suffix == ".jsonl":
        lines = enumerate(_lines(path), 1)
        parsed = ((f"{path}, line {n}", line) for n, line in lines if line.strip())
        yield from _object_rows(((where, _parse(where, line)) for where, line in parsed), wanted)
    else:
        yield from _table_rows(path, wanted)


def _parse(where: str, text: str | bytes) -> Any:
    try:
        return json.loads(text)
    # RecursionError: thousands of nested brackets.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: can't be parsed as JSON ({error})") from error


def _json_rows(path: str, wanted: Sequence[_Wanted]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    if os.path.getsize(path) > MAX_JSON_BYTES:
        raise ValueError(f"{path}: more than {MAX_JSON_BYTES:,} bytes; JSON lines have no limit")
    content = _parse(path, Path(path).read_bytes())
    if isinstance(content, list):
        numbered = ((f"{path}, entry {i}", entry) for i, entry in enumerate(content))
        yield from _object_rows(numbered, wanted)
        return
    try:
        files = {image["id"]: image["file_name"] for image in content["images"]}
        pairs = [(files[a["image_id"]], a["caption"]) for a in content["annotations"]]
    except (KeyError, TypeError, AttributeError) as error:
        expected = "expected COCO captions (images and annotations) or a list of objects"
        raise ValueError(f"{path}: {expected}, got {error!r}") from error
    for pair in pairs:
        yield path, pair[-len(wanted) :]


def _object_rows(
    objects: Iterator[tuple[str, Any]], wanted: Sequence[_Wanted]
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    names: list[str] = []
    for where, entry in objects:
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: {str(entry)[:40]!r} found, expected an object")
        if not names:
            found = list(entry)
            names = [found[find_column(where, found, *column)] for column in wanted]
        missing = [name for name in names if name not in entry]
        if missing:
            raise ValueError(f"{where}: no {missing[0]!r}, which other rows have")
        yield where, tuple(entry[name] for name in names)


def _table_rows(path: str, wanted: Sequence[_Wanted]) -> Iterator[tuple[str, tuple[str, ...]]]:
    csv.field_size_limit(MAX_FIELD_CHARS)
    first = next(_lines(path), "")
    # By the header alone: captions have commas of their own.
    delimiter = max(",\t|;", key=first.count)
    stray = _stray_quote(path, delimiter)
    if stray and delimiter != "\t":
        raise ValueError(
            f'{path}, line {stray}: a quote opens here and swallows the rows below; write "" for '
            "a quote in a quoted caption"
        )
    # Tables with tabs are often written without any quoting.
    quoting = csv.QUOTE_NONE if stray else csv.QUOTE_MINIMAL
    rows = csv.reader(_lines(path), delimiter=delimiter, quoting=quoting)  # type: ignore[arg-type]
    try:
        header = [name.strip() for name in next(rows, [])]
        places = [find_column(path, header, *column) for column in wanted]
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            where = f"{path}, line {rows.line_num}"
            if len(row) != len(header):
                raise ValueError(
                    f"{where}: {len(row)} columns, the header has {len(header)}; a caption that "
                    f"holds {delimiter!r} must be quoted"
                )
            yield where, tuple(row[place] for place in places)
    except csv.Error as error:
        raise ValueError(f"{path}, line {rows.line_num}: {error}") from error


def _stray_quote(path: str, delimiter: str) -> int:
    """Return the line of the first quote that swallows rows, 0 if there is none.

    A quoted caption may span lines. If one of these lines alone has the columns of a row, with an
    image file, it is a row.
    """
    held: list[str] = []  # the lines of the current row

    def hold() -> Iterator[str]:
        for line in _lines(path):
            held.append(line)
            yield line

    # Strictly, text behind a closing quote is an error; tables with tabs are read without quotes.
    rows = csv.reader(hold(), delimiter=delimiter, strict=delimiter == "\t")
    try:
        header = [name.strip().lower() for name in next(rows, [])]
        start = rows.line_num + 1
        held.clear()
        for row in rows:
            if len(held) > 1 and any(_is_row(row, line, header, delimiter) for line in held[1:]):
                return start
            start += len(held)
            held.clear()
    except csv.Error:
        return max(rows.line_num - len(held) + 1, 1)
    return 0


def _is_row(row: Sequence[str], line: str, header: Sequence[str], delimiter: str) -> bool:
    [cells] = csv.reader([line], delimiter=delimiter, quoting=csv.QUOTE_NONE)
    if len(cells) != len(header):
        return False
    places = [i for i, name in enumerate(header) if name in IMAGE_COLUMNS and i < len(row)]
    return all(Path(cells[i].strip()).suffix == Path(row[i].strip()).suffix for i in places)


def _lines(path: str) -> Iterator[str]:
    """Yield the lines of a text in UTF-8, or in UTF-16 with a byte order mark."""
    with open(path, "rb") as file:
        start = file.read(2)
    is_utf16 = start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    # utf-8-sig: a byte order mark would become part of the first column's name. newline: line
    # ends in a quoted caption are its content, which csv must see as they are.
    with open(path, encoding="utf-16" if is_utf16 else "utf-8-sig", newline="") as text:
        for number in itertools.count(1):
            try:
                line = text.readline(MAX_LINE_CHARS)
            except UnicodeError as error:
                raise ValueError(_undecodable(path, is_utf16)) from error
            if not line:
                return
            if len(line) == MAX_LINE_CHARS:
                raise ValueError(f"{path}, line {number}: more than {MAX_LINE_CHARS} characters")
            yield line


def _undecodable(path: str, is_utf16: bool) -> str:
    """Return a message that names the first line that isn't UTF-8."""
    if is_utf16:
        return f"{path}: damaged UTF-16"
    # Again, as bytes: the text layer decodes block by block and doesn't know the line.
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_CHARS), b""), 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                found = line[error.start : error.start + 1]
                around = line[max(0, error.start - 20) : error.start + 20]
                return (
                    f"{path}, line {number}: not UTF-8 ({found!r} in {around!r}); convert the "
                    "table, e.g. iconv -f latin1 -t utf-8"
                )
    return f"{path}: not UTF-8"
