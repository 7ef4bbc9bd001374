"""Cuts a region out of a JPEG without decoding, using its restart markers.

Entropy-coded data can only be entered at restart markers (ITU-T T.81, B.1.1.5 and E.2.4). If these
are at the same columns in every row of blocks, the data between them form tiles, and the tiles that
cover a box make a smaller JPEG with exactly the pixels of the large one. Decoding spends most of
its time on Huffman codes; those of tiles outside the box are never touched.
"""

import struct
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

__all__ = ["JpegPart", "JpegTiles", "cut"]

_CONTEXT = 2  # context pixels that chroma upsampling reads
_RESTART, _END = 0xD0, 0xD9


@dataclass(frozen=True, slots=True)
class JpegTiles:
    """The tiles formed by the restart markers of a JPEG with one sequential scan.

    Attributes:
      height: of a tile, in pixels; the last tiles may extend beyond the image.
      width: of a tile, in pixels.
      size_offset: byte offset of the image's height and width, two bytes each.
      scan_offset: byte offset of the entropy-coded data.
    """

    height: int
    width: int
    size_offset: int
    scan_offset: int


class JpegPart(NamedTuple):
    """A JPEG of rows `top .. top + height` and columns `left .. left + width` of a larger one."""

    data: bytes
    top: int
    left: int
    height: int
    width: int


def cut(
    data: bytes, tiles: JpegTiles, size: tuple[int, int], rows: range, columns: range
) -> JpegPart | None:
    """Build a JPEG from the tiles that cover a box.

    Args:
      data: the encoded file.
      tiles: how it is divided.
      size: its height and width in pixels.
      rows: of the box, in pixels.
      columns: likewise.

    Returns:
      The smaller JPEG; None if the markers are inconsistent because the file is damaged.
    """
    num_rows, num_columns = -(-size[0] // tiles.height), -(-size[1] // tiles.width)
    ends = _tile_ends(data, tiles.scan_offset, num_rows * num_columns)
    if ends is None:
        return None
    tile_rows = _covering(rows, tiles.height, num_rows)
    tile_columns = _covering(columns, tiles.width, num_columns)
    top, left = tiles.height * tile_rows.start, tiles.width * tile_columns.start
    height = min(tiles.height * tile_rows.stop, size[0]) - top
    width = min(tiles.width * tile_columns.stop, size[1]) - left
    header = bytearray(data[: tiles.scan_offset])
    struct.pack_into(">HH", header, tiles.size_offset, height, width)
    # A tile begins behind the two bytes of the marker that ends the one before.
    starts = np.concatenate([[tiles.scan_offset], ends[:-1] + 2]).reshape(num_rows, num_columns)
    starts = starts[tile_rows.start : tile_rows.stop, tile_columns.start]
    ends = ends.reshape(num_rows, num_columns)[tile_rows.start : tile_rows.stop]
    ends = ends[:, tile_columns.start : tile_columns.stop]
    part = _join(data, bytes(header), starts, ends)
    return JpegPart(part, top, left, height, width)


def _join(
    data: bytes, header: bytes, starts: Int[np.ndarray, " R"], ends: Int[np.ndarray, "R C"]
) -> bytes:
    """Join rows of tiles and renumber their markers."""
    stops = ends[:, -1] + 2
    pieces = [data[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]
    joined = bytearray(b"".join([header, *pieces]))
    lengths = stops - starts
    # How far the bytes of each row have moved: the markers are overwritten where they are now.
    moved_by = len(header) + np.cumsum(lengths) - lengths - starts
    # Restart markers are numbered 0 to 7 in turn (T.81, B.2.1), the last becomes the image's end.
    codes = (_RESTART + np.arange(ends.size) % 8).astype(np.uint8)
    codes[-1] = _END
    np.frombuffer(joined, np.uint8)[(ends + moved_by[:, None] + 1).ravel()] = codes
    return bytes(joined)


def _tile_ends(data: bytes, start: int, count: int) -> Int[np.ndarray, " N"] | None:
    """Return the position of the marker after each tile, or None if their numbering is wrong."""
    coded = np.frombuffer(data, np.uint8, offset=start)
    escapes = np.flatnonzero(coded[:-1] == 0xFF)
    codes = coded[escapes + 1]
    is_marker = codes != 0  # 0xFF 0x00 encodes a data byte 0xFF
    codes = codes[is_marker][:count]
    if len(codes) < count or codes[-1] != _END:
        return None
    if (codes[:-1] != _RESTART + np.arange(count - 1) % 8).any():
        return None
    return escapes[is_marker][:count] + start


def _covering(pixels: range, tile: int, count: int) -> range:
    """Return the tiles that contain these pixels and their context."""
    first = max(pixels.start - _CONTEXT, 0) // tile
    return range(first, min(-(-(pixels.stop + _CONTEXT) // tile), count))
