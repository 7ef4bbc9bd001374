"""Reads format, declared size and orientation of an encoded image, before any pixel is decoded."""

import io
import re
import struct
from dataclasses import dataclass

import PIL.Image

from groupvit_jax.data.images.jpeg_crop import JpegTiles

__all__ = ["BrokenImageError", "ImageHeader", "read_header"]

# All but C4 (Huffman tables), C8 (reserved) and CC (arithmetic coding), T.81, table B.1.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = frozenset((0x00, 0x01, *range(0xD0, 0xD9), 0xFF))  # filling and markers alone
_JPEG_APP1, _JPEG_SCAN, _JPEG_RESTART_INTERVAL = 0xE1, 0xDA, 0xDD
# Every image up to 16 megabytes has fewer; parsing more would take longer than decoding.
_MAX_SEGMENTS = 100_000
# Pixels times scans: a progressive JPEG of a few kilobytes can declare thousands of scans, each of
# which passes over the whole image. 20 scans (encoders write about 10) of the largest image.
MAX_SCANNED_PIXELS = 1_000_000_000
_NPY = b"\x93NUMPY"
# NumPy's header for RGB. NumPy's own reader parses Python literals, which takes 40 times as long.
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(?s:..){'descr': '\|u1', 'fortran_order': False, "
    rb"'shape': \(([1-9]\d{0,8}), ([1-9]\d{0,8}), 3\), } *\n"
)


class BrokenImageError(ValueError):
    """The bytes are not a usable image; the message gives the reason."""


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """The header of an image, read before any pixel is decoded.

    Attributes:
      kind: "jpeg", "png", "webp", "gif", "bmp", "tiff", "avif" or "npy".
      height: rows as stored, before `orientation` is applied.
      width: columns as stored.
      orientation: EXIF's orientation of the stored pixels, 1 (upright) to 8.
      height_offset: byte offset of the height in a sequential JPEG; 0 for other files (a
        progressive JPEG needs memory for the whole image at any scale).
      tiles: independently decodable parts of such a JPEG.
    """

    kind: str
    height: int
    width: int
    orientation: int = 1
    height_offset: int = 0
    tiles: JpegTiles | None = None


def read_header(data: bytes) -> ImageHeader:
    """Read format and declared size without decoding.

    Raises:
      BrokenImageError: unknown format, truncated header or an empty image.
    """
    try:
        header = _read_header(data)
    except (struct.error, IndexError):
        raise BrokenImageError(f"truncated header of an image of {len(data)} bytes") from None
    if min(header.height, header.width) < 1:
        raise BrokenImageError(f"{header.kind} declares {header.height}x{header.width} pixels")
    return header


def _read_header(data: bytes) -> ImageHeader:
    if data[:2] == b"\xff\xd8":
        return _jpeg_header(data)
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return _png_header(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp_header(data)
    if data[:6] in (b"GIF87a", b"GIF89a"):
        width, height = struct.unpack_from("<HH", data, 6)
        return ImageHeader("gif", height, width)
    if data[:2] == b"BM":
        (size,) = struct.unpack_from("<I", data, 14)
        # 12 bytes: OS/2's header, whose sides have 16 bits.
        width, height = struct.unpack_from("<HH" if size == 12 else "<ii", data, 18)
        return ImageHeader(
            "bmp", abs(height), width
        )  # negative height: rows are stored from the top
    if data[:4] in (b"II*\0", b"MM\0*"):
        return _pil_header(data, "tiff")
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return _pil_header(data, "avif")
    if data[:6] == _NPY:
        return _npy_header(data)
    if not data:
        raise BrokenImageError("no bytes")
    raise BrokenImageError(
        f"unknown image format, first bytes {data[:12]!r}; "
        "expected JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or NPY"
    )


def _pil_header(data: bytes, kind: str) -> ImageHeader:
    try:
        with PIL.Image.open(io.BytesIO(data), formats=[kind]) as image:
            # Pillow turns a TIFF upright itself.
            orientation = image.getexif().get(0x0112, 1) if kind == "avif" else 1
            width, height = image.size
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads to
        raise BrokenImageError(f"corrupt or unsupported {kind}: {error}") from None
    return ImageHeader(kind, height, width, orientation if orientation in range(1, 9) else 1)


def _npy_header(data: bytes) -> ImageHeader:
    found = _NPY_HEADER.match(data)
    if found is None:
        raise BrokenImageError(f"npy {data[10:80]!r}; expected uint8 [H, W, 3] in C order")
    height, width = int(found[1]), int(found[2])
    (length,) = struct.unpack_from("<H", data, 8)
    if found.end() != 10 + length or len(data) != found.end() + 3 * height * width:
        raise BrokenImageError(f"npy declares {height}x{width} pixels, but has {len(data)} bytes")
    return ImageHeader("npy", height, width)


def _png_header(data: bytes) -> ImageHeader:
    """Also checks all chunk lengths, because OpenCV allocates what a damaged one declares."""
    position, orientation = 8, 1
    for _ in range(_MAX_SEGMENTS):
        kind = data[position + 4 : position + 8]
        if kind == b"IEND":
            break
        (length,) = struct.unpack_from(">I", data, position)
        if kind == b"eXIf":
            orientation = _exif_orientation(data[position + 8 : position + 8 + length])
        # Length, kind, content and checksum.
        position += 12 + length
        if position + 8 > len(data):
            raise BrokenImageError(f"truncated or corrupt PNG: a chunk ends at byte {position}")
    else:
        raise BrokenImageError(f"PNG of more than {_MAX_SEGMENTS:,} chunks")
    width, height = struct.unpack_from(">II", data, 16)
    return ImageHeader("png", height, width, orientation)


def _webp_header(data: bytes) -> ImageHeader:
    chunk = data[12:16]
    if chunk == b"VP8X":
        # Sides minus one, 24 bits each.
        width, height = (int.from_bytes(data[i : i + 3], "little") + 1 for i in (24, 27))
    elif chunk == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        # Sides minus one, 14 bits each.
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        # 14 bits each; the two above are a scale that decoders ignore.
        width, height = (value & 0x3FFF for value in struct.unpack_from("<HH", data, 26))
    has_exif = chunk == b"VP8X" and data[20] & 0x08
    return ImageHeader("webp", height, width, _webp_orientation(data) if has_exif else 1)


def _webp_orientation(data: bytes) -> int:
    position = 12
    for _ in range(_MAX_SEGMENTS):
        if position + 8 > len(data):
            break
        (length,) = struct.unpack_from("<I", data, position + 4)
        if data[position : position + 4] == b"EXIF":
            block = data[position + 8 : position + 8 + length]
            return _exif_orientation(block.removeprefix(b"Exif\0\0"))  # some encoders add this
        # RIFF pads chunks to an even length.
        position += 8 + length + length % 2
    return 1


def _jpeg_header(data: bytes) -> ImageHeader:
    """Parse the segments up to the first scan."""
    position, orientation, frame, interval = 2, 1, None, 0
    for _ in range(_MAX_SEGMENTS):
        position = data.find(b"\xff", position)
        if position < 0:
            raise BrokenImageError("truncated JPEG: no scan")
        marker = data[position + 1]
        if marker in _JPEG_BARE:
            position += 1
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        body = position + 4
        if marker in _JPEG_FRAMES:
            height, width, components = struct.unpack_from(">HHB", data, body + 1)
            frame = (marker, height, width, components, body + 1)
        elif marker == _JPEG_APP1 and data[body : body + 6] == b"Exif\0\0":
            orientation = _exif_orientation(data[body + 6 : position + 2 + length])
        elif marker == _JPEG_RESTART_INTERVAL:
            (interval,) = struct.unpack_from(">H", data, body)
        elif marker == _JPEG_SCAN:
            break
        # The length counts its own two bytes, but not the marker's.
        position += 2 + length
    else:
        raise BrokenImageError(f"JPEG of more than {_MAX_SEGMENTS:,} segments before its scan")
    if frame is None:
        raise BrokenImageError("corrupt JPEG: a scan before its frame header")
    marker, height, width, components, offset = frame
    # A sequential JPEG whose single scan contains all components.
    if marker in (0xC0, 0xC1) and data[body] == components:
        tiles = _tiles(data, offset, width, components, interval, position + 2 + length)
        return ImageHeader("jpeg", height, width, orientation, offset, tiles)
    # In coded data FF is followed by 00 or a restart marker, so only scans' headers match.
    num_scans = data.count(b"\xff\xda", position)
    if num_scans * height * width > MAX_SCANNED_PIXELS:
        found = f"{num_scans} scans of {height}x{width} pixels"
        raise BrokenImageError(f"JPEG of {found}; the limit is {MAX_SCANNED_PIXELS:,} in all")
    return ImageHeader("jpeg", height, width, orientation)


def _tiles(
    data: bytes, offset: int, width: int, components: int, interval: int, scan: int
) -> JpegTiles | None:
    """Return the tiles of a JPEG whose restart interval divides its rows of blocks."""
    if interval == 0 or width == 0:
        return None
    sampling = [data[offset + 6 + 3 * i] for i in range(components)]
    # A single component is not interleaved: its blocks have 8 pixels, whatever sampling it
    # declares.
    across, down = (max(f >> 4 for f in sampling), max(f & 15 for f in sampling))
    if components == 1:
        across = down = 1
    per_row = -(-width // (8 * across)) if across else 0
    if per_row % interval or down == 0:
        return None
    return JpegTiles(8 * down, 8 * across * interval, offset, scan)


def _exif_orientation(tiff: bytes) -> int:
    """Return tag 0x0112 of the first directory; 1 if it is missing or the block is damaged."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (offset,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, offset)
        for start in range(offset + 2, offset + 2 + 12 * entries, 12):
            # Tag, type, count, and in the first two bytes of the value a 16-bit number.
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, start)
            if tag == 0x0112:
                return value if 1 <= value <= 8 else 1
    except struct.error:  # truncated metadata says nothing about the pixels
        return 1
    return 1
