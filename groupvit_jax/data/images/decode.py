"""Decodes images to RGB with bounded memory, and only the region and scale that are needed.

JPEGs are decoded by libjpeg-turbo through simplejpeg (measured 5-10 % faster than OpenCV and twice
as fast as PIL), raw pixels (.npy) are sliced in place, TIFF and AVIF are decoded by Pillow, which
heeds their orientation, and other formats by OpenCV. The declared size is checked before any memory
is allocated for it.
"""

import dataclasses
import io
import struct
from typing import NamedTuple

import cv2
import numpy as np
import PIL.Image
import simplejpeg
from jaxtyping import Shaped, UInt8

from groupvit_jax.data.images.image_header import BrokenImageError, ImageHeader, read_header
from groupvit_jax.data.images.jpeg_crop import JpegTiles, cut

__all__ = ["MAX_PIXELS", "Box", "BrokenImageError", "ImageHeader"]
__all__ += ["decode", "decode_box", "lay_on_white", "orient", "read_header"]

Image = UInt8[np.ndarray, "H W 3"]

MAX_PIXELS = 50_000_000  # 150 MB of RGB, the most that one worker may hold

# libjpeg's upsampling looks at neighbouring rows: with this many rows below the crop, its last rows
# equal those of the whole image.
_JPEG_MARGIN = 32
# Warnings that leave all requested pixels valid. The first also occurs when decoding stops at the
# crop's last row; the others are quirks of encoders that all decoders accept.
_HARMLESS = ("extraneous bytes before marker", "Invalid SOS parameters", "Adobe color transform")


class Box(NamedTuple):
    """A rectangle of pixels: rows `top .. top + height`, columns `left .. left + width`."""

    top: int
    left: int
    height: int
    width: int


def decode(data: bytes, *, min_size: int = 0, max_pixels: int = MAX_PIXELS) -> Image:
    """Decode JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or NPY to upright 8-bit RGB.

    The EXIF orientation is applied (img2dataset's shards have none, photos straight from a
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
    # Raw pixels are a view of the caller's bytes.
    return orient(pixels if pixels.flags.writeable else pixels.copy(), header.orientation)


def decode_box(
    data: bytes, header: ImageHeader, box: Box, *, min_size: int = 0, max_pixels: int = MAX_PIXELS
) -> Image:
    """Decode a rectangle of an image as stored (see `orient`), reduced in scale if allowed.

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
        in_pil = header.kind in ("tiff", "avif")
        pixels = _decode_in_pil(data, header.kind) if in_pil else _to_rgb(_imdecode(data))
        # The declared size is what was checked against the limit.
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
    # Rounded outwards: a reduced pixel covers several, some of which may be in the box.
    rows = slice(box.top // reduction, -(-bottom // reduction))
    return pixels[rows, box.left // reduction : -(-right // reduction)]


def orient(image: Shaped[np.ndarray, "H W C"], orientation: int) -> Shaped[np.ndarray, "h w C"]:
    """Turn stored pixels upright according to the EXIF orientation (1-8)."""
    if orientation == 1:
        return image
    # 5 to 8 exchange rows and columns; the axes mirrored below are those of the result.
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(image[::rows, ::columns])


def _stored_pixels(data: bytes, header: ImageHeader, max_pixels: int) -> Image:
    _check_pixels(header, header.height, header.width, max_pixels)
    num_bytes = 3 * header.height * header.width
    # At the end of the file, behind a header of any length; `read_header` has checked the sum.
    pixels = np.frombuffer(data, np.uint8, num_bytes, len(data) - num_bytes)
    return pixels.reshape(header.height, header.width, 3)


def _check_pixels(header: ImageHeader, height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise BrokenImageError(
            f"{header.kind} of {header.height}x{header.width} (height x width) needs "
            f"{height * width / 1e6:.1f} megapixels decoded; the limit is {max_pixels / 1e6:.1f}"
        )


def _reduction(box: Box, min_size: int) -> int:
    """Return libjpeg's largest fast reduction that keeps both sides of a box long enough."""
    if min_size <= 0:
        return 1
    shorter = min(box.height, box.width)
    return next((r for r in (8, 4, 2) if shorter >= r * min_size), 1)


def _decode_jpeg(
    data: bytes, header: ImageHeader, bottom: int, reduction: int, max_pixels: int
) -> Image:
    """Decode rows 0 .. bottom (at least) of a JPEG, divided by `reduction`."""
    rows = header.height
    # Progressive: libjpeg holds the coefficients of the whole image, at any scale.
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
    """Reduce a JPEG to the tiles that cover a box; return a damaged one whole, to be reported."""
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


def _decode_in_pil(data: bytes, kind: str) -> Image:
    try:
        with PIL.Image.open(io.BytesIO(data), formats=[kind]) as image:
            image.load()
            if image.mode.startswith("I;16"):
                return _to_rgb(np.asarray(image).astype(np.uint16))
            if image.mode in ("I", "F"):
                raise BrokenImageError(f"{kind} of 32-bit values is no picture")
            if not image.has_transparency_data:
                return np.array(image.convert("RGB"))
            return lay_on_white(np.asarray(image.convert("RGBA")))
    except BrokenImageError:
        raise
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads to
        raise BrokenImageError(f"corrupt {kind}: {error}") from None


def _to_rgb(pixels: np.ndarray) -> Image:
    """Convert OpenCV's grey, BGR or BGRA of 8 or 16 bits to 8-bit RGB on white."""
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
    """Composite RGBA pixels with straight (not premultiplied) alpha on white."""
    colour, alpha = pixels[..., :3].astype(np.uint16), pixels[..., 3:].astype(np.uint16)
    # Rounded by the 127; at most 255² + 127, which uint16 holds.
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
