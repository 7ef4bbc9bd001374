"""Masks in the forms that tools write: indices of 8 or 16 bits, palettes, colours, 0 and 255.

A colour is handled as one number, `red << 16 | green << 8 | blue`. All masks of a set are read in
one form, which `scan` decides from all of them before anything is evaluated.
"""

import collections
import concurrent.futures
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
from jaxtyping import Integer

from groupvit_jax.data.eval_sets.class_list import ClassList, Colour
from groupvit_jax.data.sources.masks import IGNORED, sizes
from groupvit_jax.foreign import naming

# Lossless formats. JPEG and lossy WebP blur the borders between labels.
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif")
_FORMATS = ("PNG", "TIFF", "BMP", "GIF")
_GREY = ("1", "L", "P", "I", "I;16", "I;16B", "F")
_IGNORED_16 = 2**16 - 1  # what tools with 16-bit masks write for 255
_FEW = 6  # values named in a message


def pack(colour: Colour) -> int:
    """Return a colour as one number."""
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def unpack(number: int) -> Colour:
    """Return the colour that `pack` made a number of."""
    return number >> 16, number >> 8 & 255, number & 255


def voc_colours(count: int) -> list[Colour]:
    """Return Pascal VOC's colours: the bits of an index, three at a time, from the highest bit."""
    colours = []
    for index in range(count):
        bits = [sum((index >> 3 * i + c & 1) << 7 - i for i in range(8)) for c in range(3)]
        colours.append((bits[0], bits[1], bits[2]))
    return colours


def read_values(
    path: Path, size: tuple[int, int] | None = None, *, in_colours: bool = False
) -> Integer[np.ndarray, "H W"]:
    """Return what a mask stores: indices, or colours as numbers.

    Args:
      path: a PNG, TIFF, BMP or GIF. Channels that are all equal count as one.
      size: expected height and width, as stored or turned; checked before decoding.
      in_colours: return colours, those of the palette for palette images.

    Raises:
      ValueError: it is not such an image, or colours are found where indices are expected.
    """
    try:
        with PIL.Image.open(io.BytesIO(path.read_bytes()), formats=_FORMATS) as image:
            found = (image.height, image.width)
            wrong = size is not None and sorted(found) != sorted(size)
            pixels = None if wrong else _decoded(image, in_colours)
    except Exception as error:  # Pillow raises whatever damaged chunks lead to
        expected = ", ".join(_FORMATS)
        raise ValueError(f"mask is no readable {expected} ({error!r})") from error
    if size is not None and pixels is None:
        raise ValueError(sizes(found, size))
    assert pixels is not None
    if pixels.ndim == 2:
        return pixels
    if in_colours:
        red, green, blue = (pixels[..., c].astype(np.int32) for c in range(3))
        return red << 16 | green << 8 | blue
    # Three equal channels are an index that a tool has saved as grey RGB.
    if (pixels[..., :1] != pixels).any():
        raise ValueError(
            "mask in colours found, expected one value for each pixel as in the others"
        )
    return pixels[..., 0].astype(np.int32)


def _decoded(image: PIL.Image.Image, in_colours: bool) -> np.ndarray:
    """Return values [H, W] or colours [H, W, 3]."""
    mode = image.mode
    if in_colours or mode not in _GREY:
        if mode in ("LA", "La"):  # grey and transparency
            return np.asarray(image.getchannel(0)).astype(np.int32)
        return np.asarray(image.convert("RGB"))
    values = np.asarray(image)
    whole = values.astype(np.int32)
    # Some tools save labels as float TIFFs.
    if mode == "F" and (whole != values).any():
        raise ValueError("values with fractions found, expected whole numbers")
    return whole


class Scan(NamedTuple):
    """What all masks of a set store.

    Attributes:
      pixels: number of pixels by value; of colours, as numbers, if `in_colours`.
      first: the first mask that has a value.
      in_colours: whether the masks are colours.
      unreadable: why some masks can't be read, a line each.
      shift: added to the ids of a file, of which 0 may be one.
    """

    pixels: dict[int, int]
    first: dict[int, Path]
    in_colours: bool
    unreadable: tuple[str, ...] = ()
    shift: int = 0

    @property
    def total(self) -> int:
        """Number of pixels."""
        return sum(self.pixels.values())

    def shown(self, value: int) -> str:
        """Return a value or colour for people."""
        if value < self.shift:
            return "none"
        return " ".join(map(str, unpack(value))) if self.in_colours else str(value - self.shift)


def scan(masks: Sequence[Path], in_colours: bool | None = None) -> Scan:
    """Count the values of all masks, on all cores.

    A mask that can't be read is left out here. Training replaces it like any broken sample, and
    evaluation ends where it is read.

    Args:
      masks: files.
      in_colours: how they are read; by default as indices unless one has colours.

    Raises:
      ValueError: no mask can be read; names one and why.
    """
    if in_colours is None:
        in_colours = any(found is True for found in _each(masks, _has_colours))
    pixels: dict[int, int] = collections.Counter()
    first: dict[int, Path] = {}
    counted = _each(masks, lambda path: _count(path, bool(in_colours)))
    unreadable = []
    for path, found in zip(masks, counted, strict=True):
        if isinstance(found, ValueError):
            unreadable.append(str(found))
            continue
        values, counts = found
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            pixels[value] += count
            first.setdefault(value, path)
    if len(unreadable) == len(masks):
        raise ValueError(unreadable[0])
    return Scan(dict(sorted(pixels.items())), first, in_colours, tuple(unreadable))


def _each(masks, function):
    """Yield the function's result for each mask, or its ValueError."""

    def tried(path):
        try:
            return function(path)
        except ValueError as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(tried, masks)


def _has_colours(path: Path) -> bool:
    with naming(path), PIL.Image.open(path, formats=_FORMATS) as image:
        if image.mode in (*_GREY, "LA", "La"):
            return False
        pixels = np.asarray(image.convert("RGB"))
        return bool((pixels[..., :1] != pixels).any())


def _count(path: Path, in_colours: bool) -> tuple[np.ndarray, np.ndarray]:
    with naming(path):
        return np.unique(read_values(path, in_colours=in_colours), return_counts=True)


def classes_of_values(
    found: Scan, classes: ClassList, ignored: Sequence[int | Colour] | None
) -> tuple[dict[int, int], list[str]]:
    """Return the class of each value found in masks, and lines about what was assumed.

    Args:
      found: what the masks store.
      classes: the list of classes.
      ignored: values of unlabelled pixels; by default 255, in 16 bits 65535 too.

    Raises:
      ValueError: a value has no class, nothing is labelled, or 0 and 255 stand for two classes.
    """
    table, notes = _table(found, classes)
    if ignored is None:
        defaults = {pack(voc_colours(256)[-1]), pack((255, 255, 255))}
        unlabelled = defaults if found.in_colours else {IGNORED, _IGNORED_16}
        _refuse_binary(found, table, classes)
    else:
        unlabelled = {pack(v) if isinstance(v, tuple) else v for v in ignored}
    # A class that is stated for a usual ignored value wins.
    table = dict.fromkeys(unlabelled, IGNORED) | table
    if classes.by_line and not found.in_colours:
        table, more = _from_one(found, table, classes)
        notes += more
    if unknown := [value for value in found.pixels if value not in table]:
        raise ValueError(_unknown(found, unknown, classes))
    counted = {table[value] for value, pixels in found.pixels.items() if pixels} - {IGNORED}
    if not counted:
        values = ", ".join(map(found.shown, list(found.pixels)[:_FEW]))
        raise ValueError(f"nothing is labelled: all pixels of all masks are ignored ({values})")
    if classes.has_background and counted == {0}:
        raise ValueError("nothing is labelled: all pixels of all masks are background")
    return {value: table[value] for value in found.pixels}, notes


def _table(found: Scan, classes: ClassList) -> tuple[dict[int, int], list[str]]:
    """Return the classes of stated values, or of Pascal VOC's colours if masks have colours."""
    if classes.in_colours == found.in_colours:
        return {_number(key): class_ for key, class_ in classes.classes.items()}, []
    if classes.in_colours:
        raise ValueError(f"masks without colours found, but {classes.where} gives colours")
    values = {key: class_ for key, class_ in classes.classes.items() if isinstance(key, int)}
    voc = voc_colours(1 + max(values))
    table = {pack(voc[value]): class_ for value, class_ in values.items()}
    unlabelled = pack(voc_colours(256)[-1])
    if unknown := [value for value in found.pixels if value not in {*table, unlabelled}]:
        shares = ", ".join(
            f"({found.shown(v)}) on {100 * found.pixels[v] / found.total:.1f} %"
            for v in unknown[:_FEW]
        )
        raise ValueError(
            f"masks in colours found, {shares} of the pixels, and these are not Pascal VOC's; "
            f"expected a colour for each class in {classes.where}, such as "
            f"'NAME: {found.shown(unknown[0])}'"
        )
    return table, ["masks in colours, read as Pascal VOC's"]


def _number(key: int | Colour) -> int:
    return pack(key) if isinstance(key, tuple) else key


def _refuse_binary(found: Scan, table: Mapping[int, int], classes: ClassList) -> None:
    """Refuse masks of 0 and 255 only: many tools write 255 for the one class that they draw."""
    white = pack((255, 255, 255)) if found.in_colours else IGNORED
    if white in table or set(found.pixels) != {0, white}:
        return
    name = (*classes.names, "lesion")[0]
    raise ValueError(
        f"masks with only 0 and 255 found, and 255 would be ignored: if 255 is {name!r}, write "
        f"'{name}: 255' (and the others with their values) in {classes.where}; if it is "
        "unlabelled, say ignored = [255] in a description (docs/evaluate.md)"
    )


def _from_one(
    found: Scan, table: dict[int, int], classes: ClassList
) -> tuple[dict[int, int], list[str]]:
    """Take labels as counted from 1 where only that gives each value a class."""
    count = len(classes.shown)
    lines = sorted(value for value in classes.shown if isinstance(value, int))
    values = {value for value in found.pixels if table.get(value) != IGNORED}
    if (
        classes.has_background
        or lines != list(range(count))
        or count not in values
        or not values <= {*range(count + 1)}
    ):
        return table, []
    moved = {value: class_ for value, class_ in table.items() if value not in lines}
    moved |= {0: IGNORED} | {value + 1: table[value] for value in lines}
    return moved, ["labels count from 1; 0 is ignored"]


def _unknown(found: Scan, unknown: Sequence[int], classes: ClassList) -> str:
    shares = ", ".join(
        f"{found.shown(v)} ({100 * found.pixels[v] / found.total:.1f} % of the pixels, first in "
        f"{found.first[v].name})"
        for v in unknown[:_FEW]
    )
    text = f"values without a class found in the masks: {shares}; {classes.where} has "
    text += ", ".join(
        f"{found.shown(_number(key))} {name}" for key, name in list(classes.shown.items())[:_FEW]
    )
    if len(classes.shown) > _FEW:
        text += ", ..."
    if classes.by_line:
        text += " (every line counts from 0, blank ones and comments too)"
    return text
