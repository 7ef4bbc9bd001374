"""Image files with captions -> WebDataset tar shards in img2dataset's form."""

import collections
import csv
import io
import itertools
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from absl import logging
from jaxtyping import UInt8

from groupvit_jax.data.decode import BrokenImageError, decode, read_header

IMAGE_COLUMNS = ("image", "file", "filename", "file_name", "filepath", "path", "image_path")
CAPTION_COLUMNS = ("caption", "text", "title", "sentence", "comment")
_JPEG_QUALITY = 95  # img2dataset's
_IMAGES_AT_ONCE = 256  # held in memory


@dataclass(frozen=True)
class Item:
    """An image file with its captions; number is its place in the input."""

    number: int
    file: str
    captions: list[str]


@dataclass
class Summary:
    """What became of the input: images and captions each add up to written plus dropped."""

    images: int = 0
    written_images: int = 0
    dropped_images: dict[str, int] = field(default_factory=collections.Counter)
    captions: int = 0
    written_captions: int = 0
    shards: int = 0

    def __str__(self) -> str:
        reasons = [f"{count} {reason}" for reason, count in sorted(self.dropped_images.items())]
        dropped = f"{self.images - self.written_images} dropped"
        return (
            f"{self.images} images = {self.written_images} written in {self.shards} shards + "
            f"{dropped}{' (' + ', '.join(reasons) + ')' if reasons else ''}; {self.captions} "
            f"captions = {self.written_captions} written + "
            f"{self.captions - self.written_captions} blank or of dropped images"
        )


def read_captions(path: str, image_column: str = "", caption_column: str = "") -> list[Item]:
    """Reads a CSV or TSV with a header, or captions in COCO's JSON.

    Args:
      path: the file; several rows of one image are several captions of it.
      image_column: the column with the image files; by default one of `IMAGE_COLUMNS`.
      caption_column: likewise, of `CAPTION_COLUMNS`.

    Returns:
      One item for each image, in the order of their first rows.

    Raises:
      ValueError: a column can't be found, a row has too many or too few, or the JSON isn't COCO's.
    """
    if Path(path).suffix == ".json":
        pairs: Iterable[tuple[str, str]] = _coco_pairs(path)
    else:
        pairs = _table_pairs(path, image_column, caption_column)
    captions: dict[str, list[str]] = {}
    for file, caption in pairs:
        captions.setdefault(file, []).append(caption)
    return [Item(i, file, texts) for i, (file, texts) in enumerate(captions.items())]


def _coco_pairs(path: str) -> Iterator[tuple[str, str]]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        files = {image["id"]: image["file_name"] for image in content["images"]}
        pairs = [(files[a["image_id"]], a["caption"]) for a in content["annotations"]]
    except (KeyError, TypeError, ValueError) as error:
        message = f"{path}: expected COCO captions (images and annotations), got {error!r}"
        raise ValueError(message) from error
    yield from pairs


def _table_pairs(path: str, image_column: str, caption_column: str) -> Iterator[tuple[str, str]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        delimiter = max(",\t|;", key=file.readline().count)
        file.seek(0)
        rows = csv.reader(file, delimiter=delimiter)
        header = [name.strip() for name in next(rows, [])]
        image = _find_column(path, header, "image_column", image_column, IMAGE_COLUMNS)
        caption = _find_column(path, header, "caption_column", caption_column, CAPTION_COLUMNS)
        for row in rows:
            if len(row) != len(header) and row:
                raise ValueError(
                    f"{path}, line {rows.line_num}: {len(row)} columns, the header has "
                    f"{len(header)}; a caption that holds {delimiter!r} must be quoted"
                )
            if row:
                yield row[image].strip(), row[caption]


def _find_column(
    path: str, header: Sequence[str], flag: str, wanted: str, usual: Sequence[str]
) -> int:
    names = [wanted] if wanted else [name for name in header if name.lower() in usual]
    if not names or names[0] not in header:
        expected = repr(wanted) if wanted else f"one of {', '.join(usual)} (or say --{flag})"
        raise ValueError(f"{path}: columns {header}, expected {expected}")
    return header.index(names[0])


def encode_image(data: bytes, max_side: int) -> tuple[bytes, dict[str, int]]:
    """Checks an image and makes an upright RGB JPEG of it.

    A file that is one already and not larger than `max_side` keeps its bytes.

    Args:
      data: an encoded image.
      max_side: of the longer side, in pixels.

    Returns:
      The JPEG, and its width and height beside the original ones, as img2dataset names them.

    Raises:
      BrokenImageError: it can't be decoded.
    """
    header = read_header(data)
    scale = min(1.0, max_side / max(header.height, header.width))
    keep = scale == 1.0 and header.orientation == 1 and _is_rgb_jpeg(data, header.kind)
    # Every file is decoded, also to find the corrupt ones; min_size lets a large JPEG shrink.
    smaller_side = max(1, round(scale * min(header.height, header.width)))
    image = decode(data, min_size=0 if keep else smaller_side)
    if not keep:
        image = _resize(image, max_side)
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(image), _JPEG_QUALITY)
    height, width = image.shape[:2]
    turned = header.orientation >= 5
    original_height = header.width if turned else header.height
    original_width = header.height if turned else header.width
    sizes = {"width": width, "height": height}
    return data, sizes | {"original_width": original_width, "original_height": original_height}


def _is_rgb_jpeg(data: bytes, kind: str) -> bool:
    if kind != "jpeg":
        return False
    try:
        return simplejpeg.decode_jpeg_header(data)[2] in ("YCbCr", "RGB")
    except ValueError as error:
        raise BrokenImageError(str(error)) from error


def _resize(image: UInt8[np.ndarray, "H W 3"], max_side: int) -> UInt8[np.ndarray, "h w 3"]:
    height, width = image.shape[:2]
    scale = max_side / max(height, width)
    if scale >= 1.0:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def write_shards(
    items: Sequence[Item], images: str, output: str, samples_per_shard: int, max_side: int
) -> Summary:
    """Writes KEY.jpg, KEY.txt (the first caption) and KEY.json (all of them) of every item.

    An image that can't be read and one without a caption is dropped, named in the log and counted.
    A shard appears under its name only when it is complete.

    Args:
      items: what to write; an item's number is its key.
      images: the folder that the files are relative to.
      output: path of the shards, with a field for their number, e.g. "out/shard-{:05d}.tar".
      samples_per_shard: in every shard but the last.
      max_side: see `encode_image`.

    Raises:
      ValueError: `output` has no field for the number.
      FileExistsError: shards of that name exist already; FileNotFoundError: `images` doesn't.
    """
    _check_output(output)
    if not os.path.isdir(images):
        raise FileNotFoundError(f"--images={images}: no such folder")
    summary = Summary(len(items), captions=sum(len(item.captions) for item in items))
    samples = _samples(items, images, max_side, summary)
    while (first := next(samples, None)) is not None:
        others = itertools.islice(samples, samples_per_shard - 1)
        _write_shard(output.format(summary.shards), itertools.chain([first], others))
        summary.shards += 1
    return summary


def _check_output(output: str) -> None:
    try:
        first, second = output.format(0), output.format(1)
    except (IndexError, KeyError, ValueError):
        first = second = output
    if first == second:
        raise ValueError(f"--output={output}: expected a field for the number, as in {{:05d}}")
    if os.path.exists(first):
        raise FileExistsError(f"--output={output}: {first} exists already; remove the old shards")
    os.makedirs(os.path.dirname(first) or ".", exist_ok=True)


def _samples(
    items: Sequence[Item], images: str, max_side: int, summary: Summary
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yields (key, extension -> content) in the items' order and counts into the summary."""

    def convert(item: Item) -> dict[str, bytes] | str:
        return _convert(item, images, max_side)

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(items), _IMAGES_AT_ONCE):
            part = items[start : start + _IMAGES_AT_ONCE]
            for item, sample in zip(part, pool.map(convert, part), strict=True):
                if isinstance(sample, str):
                    summary.dropped_images[sample] += 1
                    continue
                summary.written_images += 1
                summary.written_captions += sum(bool(text.strip()) for text in item.captions)
                yield _key(item), sample


def _key(item: Item) -> str:
    return f"{item.number:09d}"


def _convert(item: Item, images: str, max_side: int) -> dict[str, bytes] | str:
    """Returns extension -> content, or the reason why the item is dropped."""
    captions = [text.strip() for text in item.captions if text.strip()]
    if not captions:
        logging.warning("Dropped %s: no caption", item.file)
        return "without a caption"
    try:
        jpeg, sizes = encode_image(Path(images, item.file).read_bytes(), max_side)
    except OSError as error:
        logging.warning("Dropped %s: %s", item.file, error.strerror)
        return "unreadable files"
    except BrokenImageError as error:
        logging.warning("Dropped %s: %s", item.file, error)
        return "broken images"
    metadata: Mapping[str, Any] = {
        "key": _key(item),
        "file": item.file,
        "caption": captions[0],
        "captions": captions,
        "status": "success",
        **sizes,
    }
    text = json.dumps(metadata, ensure_ascii=False).encode()
    return {"jpg": jpeg, "txt": captions[0].encode(), "json": text}


def _write_shard(path: str, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> None:
    incomplete = f"{path}.incomplete"
    with tarfile.open(incomplete, "w", format=tarfile.USTAR_FORMAT) as archive:
        for key, contents in samples:
            for extension, content in contents.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    os.replace(incomplete, path)
