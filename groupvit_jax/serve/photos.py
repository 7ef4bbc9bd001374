"""Photos as a browser sends them: checked, bounded in size, and kept in memory only."""

import base64
import binascii
import dataclasses
from typing import Any

import cv2
import numpy as np

from groupvit_jax.data.images.decode import MAX_PIXELS, BrokenImageError, decode, read_header
from groupvit_jax.report import visualize
from groupvit_jax.typing import UInt8

RgbImage = UInt8[np.ndarray, "H W 3"]

_LOSSLESS_PIXELS = 300_000  # up to here a PNG is small enough to be sent back and forth
_JPEG_QUALITY = 95
_LONGEST_NAME = 200


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds on what a visitor of the page may ask for.

    Attributes:
      megabytes: encoded size of the photos of one upload together.
      megapixels: size that an encoded photo may declare.
      side: longer side, in pixels, to which larger photos are scaled down before anything is
        computed. Scores take 4 bytes per pixel and label.
      photos: photos of one upload.
      labels: labels at once; indices of masks are sent as bytes.
      seconds: time until an answer for one photo, waiting included.
      waiting: photos of all visitors that may wait at a time.
    """

    megabytes: float = 64.0
    megapixels: float = MAX_PIXELS / 1e6
    side: int = 1280
    photos: int = 8
    labels: int = 100
    seconds: float = 60.0
    waiting: int = 32

    def __post_init__(self) -> None:
        """Raise a ValueError that names the field of an invalid value."""
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name}={getattr(self, field.name)}: expected more than 0")
        if self.labels > 250:
            raise ValueError(f"labels={self.labels}: expected at most 250")


@dataclasses.dataclass(frozen=True)
class Photo:
    """A photo in the form in which the page keeps it: the server forgets it after each answer.

    Attributes:
      name: the file's name.
      url: the pixels that are worked on, as a data URL; scaled down if the upload was larger.
      height: rows of the upload, upright.
      width: columns of the upload, upright.
    """

    name: str
    url: str
    height: int
    width: int

    def pixels(self, limits: Limits) -> RgbImage:
        """Decode the pixels.

        Raises:
          ValueError: they are broken, or more than the page ever sent.
        """
        return _decode(self.name, _bytes_of(self.name, self.url), limits.side**2)


def receive(name: str, content: str, limits: Limits) -> Photo:
    """Decode an uploaded photo, turn it upright and scale it down to the working size.

    Args:
      name: the file's name, for messages and downloads.
      content: the encoded file as a data URL.
      limits: bounds; a photo's declared size is checked before it is decoded.

    Raises:
      ValueError: one sentence that names the file and what is wrong with it.
    """
    name = " ".join(str(name).split())[:_LONGEST_NAME] or "photo"
    data = _bytes_of(name, content)
    try:
        header = read_header(data)
    except BrokenImageError as error:
        raise ValueError(f"{name}: {error}") from error
    megapixels = header.height * header.width / 1e6
    if megapixels > limits.megapixels:
        raise ValueError(
            f"{name}: {megapixels:.1f} megapixels found, expected at most {limits.megapixels:g}"
        )
    # A JPEG is decoded at 1/2, 1/4 or 1/8 where that still fills the working size.
    pixels = _decode(name, data, int(limits.megapixels * 1e6), min_size=limits.side)
    size = (header.height, header.width)
    height, width = size if header.orientation < 5 else size[::-1]
    return Photo(name, _url_of(_scaled_down(pixels, limits.side)), height, width)


def restore(record: Any, limits: Limits) -> Photo:
    """Return a photo that the page sent back.

    Raises:
      ValueError: it is none that the page was given.
    """
    fields = [field.name for field in dataclasses.fields(Photo)]
    types = (str, str, int, int)
    found = [record.get(name) if isinstance(record, dict) else None for name in fields]
    # By type, not `isinstance`, for which True is an int.
    fits = all(type(value) is kind for value, kind in zip(found, types, strict=True))
    if not fits or len(record) != len(fields):
        raise ValueError(f"photo: expected {', '.join(fields)}; load the page again")
    photo = Photo(**record)
    if min(photo.height, photo.width) < 1 or photo.height * photo.width > limits.megapixels * 1e6:
        raise ValueError(f"{photo.name}: {photo.height}x{photo.width} pixels are too many")
    return photo


def data_url(content: bytes, kind: str = "png") -> str:
    """Return an encoded picture as the address of itself."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _url_of(pixels: RgbImage) -> str:
    if pixels.shape[0] * pixels.shape[1] <= _LOSSLESS_PIXELS:
        return data_url(visualize.png(pixels))
    return data_url(visualize.jpeg(pixels, _JPEG_QUALITY), "jpeg")


def _scaled_down(pixels: RgbImage, side: int) -> UInt8[np.ndarray, "h w 3"]:
    scale = side / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    height, width = (max(1, round(length * scale)) for length in pixels.shape[:2])
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)


def _decode(name: str, data: bytes, max_pixels: int, min_size: int = 0) -> RgbImage:
    try:
        return decode(data, min_size=min_size, max_pixels=max_pixels)
    except BrokenImageError as error:
        raise ValueError(f"{name}: {error}") from error


def _bytes_of(name: str, url: str) -> bytes:
    _, comma, encoded = str(url).partition(",")
    try:
        return base64.b64decode(encoded, validate=True) if comma else b""
    except binascii.Error as error:
        raise ValueError(f"{name}: broken data URL: {error}") from error
