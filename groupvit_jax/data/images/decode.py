"""Decodes images to RGB with bounded memory, and only the region and scale that are needed.

JPEGs are decoded by libjpeg-turbo through simplejpeg (measured 5-10 % faster than OpenCV and twice
as fast as PIL), raw pixels (.npy) are sliced in place, and other formats are decoded by OpenCV. The
declared size is checked before any memory is allocated for it.
"""

import dataclasses
import re
import struct
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Shaped, UInt8

from groupvit_jax.data.images.jpeg_crop import JpegTiles, cut

__all__ = ["MAX_PIXELS", "Box", "BrokenImageError", "ImageHeader"]
__all__ += ["decode", "decode_box", "lay_on_white", "orient", "read_header"]

Image = UInt8[np.ndarray, "H W 3"]

MAX_PIXELS = 50_000_000  # 150 MB of RGB, the most that one worker may hold

# libjpeg's upsampling looks at neighbouring rows: with this many rows below the crop, its last rows
# equal those of the whole image.
_JPEG_MARGIN = 32
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = frozenset((0x00, 0x01, *range(0xD0, 0xD9), 0xFF))  # filling and markers alone
_JPEG_APP1, _JPEG_SCAN, _JPEG_RESTART_INTERVAL = 0xE1, 0xDA, 0xDD
# Warnings that leave all requested pixels valid. The first also occurs when decoding stops at the
# crop's last row; the others are quirks of encoders that all decoders accept.
_HARMLESS = ("extraneous bytes before marker", "Invalid SOS parameters", "Adobe color transform")


_NPY = b"\x93NUMPY"
# NumPy's header for RGB. NumPy's own reader parses Python literals, which takes 40 times as long.
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(?s:..){'descr': '\|u1', 'fortran_order': False, "
    rb"'shape': \(([1-9]\d{0,8}), ([1-9]\d{0,8}), 3\), } *\n"
)


class BrokenImageError(ValueError):
    """The bytes are not a usable image; the message gives the reason."""


class Box(NamedTuple):
    """A rectangle of pixels: rows `top .. top + height`, columns `left .. left + width`."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """The header of an image, read before any pixel is decoded.

    Attributes:
      kind: "jpeg", "png", "webp", "gif", "bmp" or "npy".
      height: rows as stored, before `orientation` is applied.
      width: columns as stored.
      orientation: EXIF's orientation of a JPEG, 1 (upright) to 8.
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


def decode(data: bytes, *, min_size: int = 0, max_pixels: int = MAX_PIXELS) -> Image:
    """Decodes JPEG, PNG, WebP, GIF, BMP or NPY to upright 8-bit RGB.

    The EXIF orientation of JPEGs is applied (img2dataset's shards have none, photos straight from a
    camera do). Transparency is composited on white, as img2dataset does. 16-bit channels are
    reduced to their high byte. Only the first frame of an animation is used.

    Args:
      data: the encoded file.
      min_size: if positive, a JPEG may be returned at 1/2, 1/4 or 1/8 of its size, as long as its
        shorter side has at least this many pixels.
      max_pixels: larger images are refused.

    Returns:
      UInt8 [H, W, 3], a new array.

    Raises:
      BrokenImageError: truncated, corrupt, too large, or of an unknown format.
    """
    header = read_header(data)
    whole = Box(0, 0, header.height, header.width)
    pixels = decode_box(data, header, whole, min_size=min_size, max_pixels=max_pixels)
    return orient(pixels if pixels.flags.writeable else pixels.copy(), header.orientation)


def decode_box(
    data: bytes, header: ImageHeader, box: Box, *, min_size: int = 0, max_pixels: int = MAX_PIXELS
) -> Image:
    """Decodes a rectangle of an image as stored (see `orient`), reduced in scale if allowed.

    Baseline JPEGs are decoded from the first row of the image to the last row of the box, at 1/1,
    1/2, 1/4 or 1/8 of the size; with suitable restart markers, only the tiles under the box are
    decoded. Raw pixels are not copied. Other images are decoded whole, within `max_pixels`.

    Args:
      data: the encoded file.
      header: `read_header(data)`.
      box: in pixels of the full size, inside the image.
      min_size: if positive, the result may be reduced as long as both sides have this many pixels.
      max_pixels: upper bound on the number of decoded pixels.

    Returns:
      UInt8 [h, w, 3], usually a view; read-only if it is a view of `data`.

    Raises:
      BrokenImageError: truncated, corrupt or too large.
    """
    if header.kind == "npy":
        pixels, reduction = _stored_pixels(data, header, max_pixels), 1
    elif header.kind != "jpeg":
        _check_pixels(header, header.height, header.width, max_pixels)
        pixels = _to_rgb(_imdecode(data))
        if pixels.shape[:2] != (header.height, header.width):
            found = f"{pixels.shape[0]}x{pixels.shape[1]} (height x width)"
            declared = f"{header.height}x{header.width}"
            raise BrokenImageError(f"{header.kind} decodes to {found} but declares {declared}")
        reduction = 1
    else:
        reduction = _reduction(box, min_size)
        if reduction == 1 and header.tiles is not None:
            data, header, box = _cut(data, header, header.tiles, box)
        pixels = _decode_jpeg(data, header, box.top + box.height, reduction, max_pixels)
    bottom, right = box.top + box.height, box.left + box.width
    rows = slice(box.top // reduction, -(-bottom // reduction))
    return pixels[rows, box.left // reduction : -(-right // reduction)]


def orient(image: Shaped[np.ndarray, "H W C"], orientation: int) -> Shaped[np.ndarray, "h w C"]:
    """Turns stored pixels upright according to the EXIF orientation (1-8)."""
    if orientation == 1:
        return image
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(image[::rows, ::columns])


def read_header(data: bytes) -> ImageHeader:
    """Reads format and declared size without decoding.

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
        width, height = struct.unpack_from("<HH" if size == 12 else "<ii", data, 18)
        return ImageHeader(
            "bmp", abs(height), width
        )  # negative height: rows are stored from the top
    if data[:6] == _NPY:
        return _npy_header(data)
    if not data:
        raise BrokenImageError("no bytes")
    raise BrokenImageError(
        f"unknown image format, first bytes {data[:12]!r}; "
        "expected JPEG, PNG, WebP, GIF, BMP or NPY"
    )


def _npy_header(data: bytes) -> ImageHeader:
    found = _NPY_HEADER.match(data)
    if found is None:
        raise BrokenImageError(f"npy {data[10:80]!r}; expected uint8 [H, W, 3] in C order")
    height, width = int(found[1]), int(found[2])
    (length,) = struct.unpack_from("<H", data, 8)
    if found.end() != 10 + length or len(data) != found.end() + 3 * height * width:
        raise BrokenImageError(f"npy declares {height}x{width} pixels, but has {len(data)} bytes")
    return ImageHeader("npy", height, width)


def _stored_pixels(data: bytes, header: ImageHeader, max_pixels: int) -> Image:
    _check_pixels(header, header.height, header.width, max_pixels)
    num_bytes = 3 * header.height * header.width
    pixels = np.frombuffer(data, np.uint8, num_bytes, len(data) - num_bytes)
    return pixels.reshape(header.height, header.width, 3)


def _png_header(data: bytes) -> ImageHeader:
    """Also checks all chunk lengths, because OpenCV allocates what a damaged one declares."""
    position = 8
    while data[position + 4 : position + 8] != b"IEND":
        (length,) = struct.unpack_from(">I", data, position)
        position += 12 + length
        if position + 8 > len(data):
            raise BrokenImageError(f"truncated or corrupt PNG: a chunk ends at byte {position}")
    width, height = struct.unpack_from(">II", data, 16)
    return ImageHeader("png", height, width)


def _webp_header(data: bytes) -> ImageHeader:
    chunk = data[12:16]
    if chunk == b"VP8X":
        width, height = (int.from_bytes(data[i : i + 3], "little") + 1 for i in (24, 27))
    elif chunk == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (value & 0x3FFF for value in struct.unpack_from("<HH", data, 26))
    return ImageHeader("webp", height, width)


def _jpeg_header(data: bytes) -> ImageHeader:
    """Parses the segments up to the first scan."""
    position, orientation, frame, interval = 2, 1, None, 0
    while True:
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
        position += 2 + length
    if frame is None:
        raise BrokenImageError("corrupt JPEG: a scan before its frame header")
    marker, height, width, components, offset = frame
    sequential = (
        marker in (0xC0, 0xC1) and data[body] == components
    )  # a single scan contains all components
    if not sequential:
        return ImageHeader("jpeg", height, width, orientation)
    tiles = _tiles(data, offset, width, components, interval, position + 2 + length)
    return ImageHeader("jpeg", height, width, orientation, offset, tiles)


def _tiles(
    data: bytes, offset: int, width: int, components: int, interval: int, scan: int
) -> JpegTiles | None:
    """Returns the tiles of a JPEG whose restart interval divides its rows of blocks."""
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
    """Returns tag 0x0112 of the first directory; 1 if it is missing or the block is damaged."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (offset,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, offset)
        for start in range(offset + 2, offset + 2 + 12 * entries, 12):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, start)
            if tag == 0x0112:
                return value if 1 <= value <= 8 else 1
    except struct.error:  # truncated metadata says nothing about the pixels
        return 1
    return 1


def _check_pixels(header: ImageHeader, height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise BrokenImageError(
            f"{header.kind} of {header.height}x{header.width} (height x width) needs "
            f"{height * width / 1e6:.1f} megapixels decoded; the limit is {max_pixels / 1e6:.1f}"
        )


def _reduction(box: Box, min_size: int) -> int:
    """Returns libjpeg's largest fast reduction that keeps both sides of a box long enough."""
    if min_size <= 0:
        return 1
    shorter = min(box.height, box.width)
    return next((r for r in (8, 4, 2) if shorter >= r * min_size), 1)


def _decode_jpeg(
    data: bytes, header: ImageHeader, bottom: int, reduction: int, max_pixels: int
) -> Image:
    """Decodes rows 0 .. bottom (at least) of a JPEG, divided by `reduction`."""
    rows = header.height
    if header.height_offset == 0:
        _check_pixels(header, header.height, header.width, max_pixels)
    elif bottom + _JPEG_MARGIN < rows:
        # Declaring fewer rows stops the decoder early, which saves about a seventh of the work for
        # random crops. (libjpeg's own partial decoding has no maintained wheel.)
        rows = bottom + _JPEG_MARGIN
        shortened = bytearray(data)
        struct.pack_into(">H", shortened, header.height_offset, rows)
        data = bytes(shortened)
    height, width = -(-rows // reduction), -(-header.width // reduction)
    _check_pixels(header, height, width, max_pixels)
    pixels = np.empty((height, width, 3), np.uint8)
    scale = dict(min_height=height, min_width=width, min_factor=reduction) if reduction > 1 else {}
    try:
        simplejpeg.decode_jpeg(data, "RGB", buffer=pixels, **scale)
    except ValueError as error:  # also raised for warnings, after all rows are in `pixels`
        if not any(harmless in str(error) for harmless in _HARMLESS):
            raise BrokenImageError(f"corrupt JPEG: {error}") from None
    return pixels


def _cut(
    data: bytes, header: ImageHeader, tiles: JpegTiles, box: Box
) -> tuple[bytes, ImageHeader, Box]:
    """Reduces a JPEG to the tiles that cover a box; returns a damaged one whole, to be reported."""
    rows = range(box.top, box.top + box.height)
    columns = range(box.left, box.left + box.width)
    part = cut(data, tiles, (header.height, header.width), rows, columns)
    if part is None:
        return data, header, box
    header = dataclasses.replace(header, height=part.height, width=part.width, tiles=None)
    return part.data, header, Box(box.top - part.top, box.left - part.left, box.height, box.width)


def _imdecode(data: bytes) -> np.ndarray:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise BrokenImageError(f"corrupt image: {error.err}") from None
    if pixels is None:
        raise BrokenImageError("corrupt or truncated image")
    return pixels


def _to_rgb(pixels: np.ndarray) -> Image:
    """Converts OpenCV's grey, BGR or BGRA of 8 or 16 bits to 8-bit RGB on white."""
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.dtype != np.uint8 or channels not in (1, 3, 4):
        raise BrokenImageError(f"{channels} channels of {pixels.dtype} are no picture")
    if channels == 1:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    if channels == 3:
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    return lay_on_white(cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA))


def lay_on_white(pixels: UInt8[np.ndarray, "H W 4"]) -> Image:
    """Composites RGBA pixels with straight (not premultiplied) alpha on white."""
    colour, alpha = pixels[..., :3].astype(np.uint16), pixels[..., 3:].astype(np.uint16)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
