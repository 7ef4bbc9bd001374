"""Tables of image files and captions: CSV, TSV, and COCO's caption JSON."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CAPTION_COLUMNS", "IMAGE_COLUMNS", "ImageCaptions", "find_column", "read_captions"]
__all__ += ["read_texts"]

IMAGE_COLUMNS = ("image", "file", "filename", "file_name", "filepath", "path", "image_path")
CAPTION_COLUMNS = ("caption", "captions", "text", "title", "sentence", "comment")


@dataclass(frozen=True)
class ImageCaptions:
    """An image file with all its captions."""

    file: str
    captions: list[str]


def read_captions(
    path: str, image_column: str = "", caption_column: str = ""
) -> list[ImageCaptions]:
    """Reads a CSV or TSV with a header, or captions in COCO's JSON.

    Args:
      path: the file; several rows of one image are several captions of it.
      image_column: the column with the image files; by default one of `IMAGE_COLUMNS`.
      caption_column: likewise, of `CAPTION_COLUMNS`.

    Returns:
      One entry per image, in the order of their first rows.

    Raises:
      ValueError: a column can't be found, a row has too many or too few, or the JSON isn't COCO's.
    """
    if Path(path).suffix == ".json":
        rows = _coco_pairs(path)
    else:
        wanted = [("image_column", image_column, IMAGE_COLUMNS)]
        rows = _table_rows(path, [*wanted, ("caption_column", caption_column, CAPTION_COLUMNS)])
    captions: dict[str, list[str]] = {}
    for file, caption in rows:
        captions.setdefault(file.strip(), []).append(caption)
    return [ImageCaptions(file, texts) for file, texts in captions.items()]


def read_texts(path: str, caption_column: str = "") -> Iterator[str]:
    """Streams only the captions; see `read_captions`."""
    if Path(path).suffix == ".json":
        yield from (caption for _, caption in _coco_pairs(path))
    else:
        wanted = [("caption_column", caption_column, CAPTION_COLUMNS)]
        yield from (caption for (caption,) in _table_rows(path, wanted))


def find_column(
    path: str, header: Sequence[str], flag: str, wanted: str, usual: Sequence[str]
) -> int:
    """Returns the index of the column `wanted`, or of the first of the usual names if it is empty.

    Raises:
      ValueError: there is none; the message names the file and the flag.
    """
    lower = [name.lower() for name in header]
    if wanted in header:
        return header.index(wanted)
    places = [lower.index(name) for name in usual if name in lower]
    if wanted:
        raise ValueError(f"--{flag}={wanted}: {path} has columns {list(header)}")
    if not places:
        expected = f"one of {', '.join(usual)} (or say --{flag})"
        raise ValueError(f"{path}: columns {list(header)}, expected {expected}")
    return places[0]


def _coco_pairs(path: str) -> Iterator[tuple[str, ...]]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        files = {image["id"]: image["file_name"] for image in content["images"]}
        pairs = [(files[a["image_id"]], a["caption"]) for a in content["annotations"]]
    except (KeyError, TypeError, ValueError) as error:
        message = f"{path}: expected COCO captions (images and annotations), got {error!r}"
        raise ValueError(message) from error
    yield from pairs


def _table_rows(
    path: str, wanted: Sequence[tuple[str, str, Sequence[str]]]
) -> Iterator[tuple[str, ...]]:
    """Yields the columns (flag, name, usual names) of every row that isn't empty."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            delimiter = max(",\t|;", key=file.readline().count)
            file.seek(0)
            rows = csv.reader(file, delimiter=delimiter)
            header = [name.strip() for name in next(rows, [])]
            places = [find_column(path, header, *column) for column in wanted]
            for row in rows:
                if len(row) != len(header) and row:
                    raise ValueError(
                        f"{path}, line {rows.line_num}: {len(row)} columns, the header has "
                        f"{len(header)}; a caption that holds {delimiter!r} must be quoted"
                    )
                if row:
                    yield tuple(row[place] for place in places)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no table in UTF-8: {error}") from error
