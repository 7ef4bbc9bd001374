"""Converts encoded images to upright RGB JPEGs or raw pixels, no larger than training needs."""

import dataclasses
import math

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8

from groupvit_jax.data.images.decode import BrokenImageError, ImageHeader, decode, read_header
from groupvit_jax.data.images.transforms import MIN_SIDE
from groupvit_jax.prepare.files import array_bytes

__all__ = ["ENCODINGS", "ImageLimits", "TooSmallError", "encode_image"]

ENCODINGS = ("jpeg", "pixels")

_MARGIN = 1.5  # libjpeg may reduce an image to no less than this multiple of the requested size
_BLOCK = 16  # side in pixels of a block of all components in 4:2:0


@dataclasses.dataclass(frozen=True)
class ImageLimits:
    """Size limits and encoding of stored images; images are never enlarged.

    Attributes:
      max_side: limit of the longer side in pixels; 0 for none.
      short_side: limit of the shorter side in pixels; 0 for none.
      jpeg_quality: 1 to 100, for re-encoded images.
      encoding: "jpeg", or "pixels" for uncompressed images that training need not decode.
    """

    max_side: int = 512
    short_side: int = 0
    jpeg_quality: int = 95
    encoding: str = "jpeg"

    def scale(self, height: int, width: int) -> float:
        """Return the factor for both sides, at most 1."""
        longer = self.max_side / max(height, width) if self.max_side else 1.0
        shorter = self.short_side / min(height, width) if self.short_side else 1.0
        return min(1.0, longer, shorter)


class TooSmallError(BrokenImageError):
    """A side is shorter than `MIN_SIDE`, the minimum for training."""


def encode_image(data: bytes, limits: ImageLimits) -> tuple[bytes, dict[str, int]]:
    """Check an image and convert it to an upright RGB JPEG or a .npy file of its pixels.

    An upright RGB JPEG within the limits keeps its bytes. In all other images, the EXIF orientation
    is applied to the pixels.

    Args:
      data: an encoded image.
      limits: size limits and encoding.

    Returns:
      The file, and its width and height along with the original ones, in img2dataset's fields.

    Raises:
      TooSmallError: a side is too short; BrokenImageError: it can't be decoded.
    """
    header = read_header(data)
    scale = limits.scale(header.height, header.width)
    height, width = (max(1, round(scale * side)) for side in (header.height, header.width))
    if min(height, width) < MIN_SIDE:
        found = f"{height}x{width} pixels (height x width)"
        raise TooSmallError(f"{found}, expected at least {MIN_SIDE}")
    keep = scale == 1.0 and header.orientation == 1 and limits.encoding == "jpeg"
    keep = keep and _is_rgb_jpeg(data, header)
    # Every file is decoded, if only to detect corruption.
    image = decode(data, min_size=0 if keep else math.ceil(_MARGIN * min(height, width)))
    if header.orientation >= 5:
        height, width = width, height
    if not keep:
        image = _resize(image, height, width)
        pixels = limits.encoding == "pixels"
        data = array_bytes(image) if pixels else _encode(image, limits.jpeg_quality)
    turned = header.orientation >= 5
    original_height = header.width if turned else header.height
    original_width = header.height if turned else header.width
    sizes = {"width": width, "height": height}
    return data, sizes | {"original_width": original_width, "original_height": original_height}


def _encode(image: UInt8[np.ndarray, "H W 3"], quality: int) -> bytes:
    """Encode a 4:2:0 JPEG, like img2dataset's, in independently decodable tiles."""
    blocks = -(-image.shape[1] // _BLOCK)
    # Restart markers at the same columns of every row let training decode only a crop (see
    # `jpeg_crop`). Each adds about 5 bytes; tiles of fewer than 3 blocks would be mostly markers.
    interval = next((size for size in range(3, 9) if blocks % size == 0), blocks)
    options = {
        cv2.IMWRITE_JPEG_QUALITY: quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR: cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
        cv2.IMWRITE_JPEG_RST_INTERVAL: interval,
    }
    flat = [value for option in options.items() for value in option]
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), flat)[1].tobytes()


def _is_rgb_jpeg(data: bytes, header: ImageHeader) -> bool:
    if header.kind != "jpeg":
        return False
    try:
        return simplejpeg.decode_jpeg_header(data)[2] in ("YCbCr", "RGB")
    except ValueError as error:
        raise BrokenImageError(str(error)) from error


def _resize(
    image: UInt8[np.ndarray, "H W 3"], height: int, width: int
) -> UInt8[np.ndarray, "h w 3"]:
    if image.shape[:2] != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(image)
