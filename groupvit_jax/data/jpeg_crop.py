"""Cutting a JPEG down to a part of it without decoding, where its restart markers allow.

The entropy-coded data of a JPEG can be entered at restart markers only (ITU-T T.81, F.1.1.5 and
B.2.4.4). Where they stand at the same columns in every row of blocks, the pieces between them are
tiles: those that cover a box make a smaller JPEG, whose pixels are exactly the large one's. Most of
the time of decoding is that of Huffman codes, which tiles outside of the box are spared.
"""

import struct
from dataclasses import dataclass

import numpy as np

__all__ = ["JpegTiles", "cut"]

# Neighbours that libjpeg's interpolation of the colours looks at.
_CONTEXT = 2


@dataclass(frozen=True, slots=True)
class JpegTiles:
    """How the restart markers of a JPEG with one sequential scan divide it.

    Attributes:
      height: rows of the image.
      width: its columns.
      tile_height: rows of a tile; the last ones may reach over the image's end.
      tile_width: its columns, likewise.
      size_offset: where the file stores height and width, 2 bytes each.
      scan_offset: where its entropy-coded data begin.
    """

    height: int
    width: int
    tile_height: int
    tile_width: int
    size_offset: int
    scan_offset: int

    @property
    def rows(self) -> int:
        """Number of tiles from top to bottom."""
        return -(-self.height // self.tile_height)

    @property
    def columns(self) -> int:
        """Number of tiles from left to right."""
        return -(-self.width // self.tile_width)


def cut(
    data: bytes, tiles: JpegTiles, top: int, left: int, bottom: int, right: int
) -> tuple[bytes, int, int, int, int] | None:
    """Makes a JPEG of the tiles that cover rows top .. bottom and columns left .. right.

    Args:
      data: the encoded file.
      tiles: of the file.
      top: first row in pixels.
      left: first column.
      bottom: one after the last row.
      right: one after the last column.

    Returns:
      The smaller JPEG, and its top, left, height and width in pixels; None where markers are
      missing or too many, or their numbers are wrong: the file is damaged or not what it says.
    """
    # Where each tile begins: after the header, or after the marker before it.
    coded = np.frombuffer(data, np.uint8, offset=tiles.scan_offset)
    first = coded[1:]
    markers = np.flatnonzero((coded[:-1] == 0xFF) & (first >= 0xD0) & (first <= 0xD9))
    count = tiles.rows * tiles.columns
    codes = first[markers]
    if len(markers) != count or codes[-1] != 0xD9:
        return None
    if (codes[:-1] != 0xD0 + np.arange(count - 1) % 8).any():
        return None
    ends = (markers + tiles.scan_offset).tolist()
    first_row, end_row = _covering(top, bottom, tiles.tile_height, tiles.height)
    first_column, end_column = _covering(left, right, tiles.tile_width, tiles.width)
    height = min(end_row * tiles.tile_height, tiles.height) - first_row * tiles.tile_height
    width = min(end_column * tiles.tile_width, tiles.width) - first_column * tiles.tile_width
    header = bytearray(data[: tiles.scan_offset])
    struct.pack_into(">HH", header, tiles.size_offset, height, width)
    pieces = [bytes(header)]
    number = 0
    for row in range(first_row, end_row):
        for tile in range(row * tiles.columns + first_column, row * tiles.columns + end_column):
            start = ends[tile - 1] + 2 if tile else tiles.scan_offset
            pieces += (data[start : ends[tile]], _MARKERS[number % 8])
            number += 1
    pieces[-1] = b"\xff\xd9"
    return (
        b"".join(pieces),
        first_row * tiles.tile_height,
        first_column * tiles.tile_width,
        height,
        width,
    )


_MARKERS = [bytes((0xFF, 0xD0 + number)) for number in range(8)]


def _covering(start: int, end: int, tile: int, size: int) -> tuple[int, int]:
    """The first tile, and one after the last, that hold start .. end with their context."""
    return max(start - _CONTEXT, 0) // tile, -(-min(end + _CONTEXT, size) // tile)
