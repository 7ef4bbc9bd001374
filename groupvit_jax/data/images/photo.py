"""Reads a path, PIL image or array as upright RGB pixels."""

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from groupvit_jax.data.images.decode import decode, lay_on_white

RgbImage = UInt8[np.ndarray, "H W 3"]


def read_photo(photo: Any, name: str = "image") -> RgbImage:
    """Return upright RGB pixels, with transparency composited on white.

    Args:
      photo: a file's path; a `PIL.Image`; or an array, UInt8 [H, W] (grey), [H, W, 3] (RGB) or
        [H, W, 4] (RGBA).
      name: name for messages if the image isn't a file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it has another type or shape, or can't be decoded.
    """
    if isinstance(photo, str | os.PathLike):
        return _read_file(Path(photo))
    if isinstance(photo, Image.Image):
        return _from_pil(photo, name)
    if not hasattr(photo, "__array__"):
        raise ValueError(
            f"{name}: {type(photo).__name__} found, expected a path, a PIL image or an array"
        )
    return _from_array(np.asarray(photo), name)


def _read_file(path: Path) -> RgbImage:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return decode(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _from_pil(photo: Image.Image, name: str) -> RgbImage:
    photo = ImageOps.exif_transpose(photo)
    if photo.mode.startswith("I;16"):
        grey = (np.asarray(photo) >> 8).astype(np.uint8)  # the high byte, as in `decode`
        return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
    if photo.mode in ("I", "F"):
        raise ValueError(f"{name}: PIL mode {photo.mode!r} found, expected one with 8 or 16 bits")
    return _from_array(np.asarray(photo.convert(_rgb_or_rgba(photo))), name)


def _rgb_or_rgba(photo: Image.Image) -> str:
    return "RGBA" if photo.has_transparency_data else "RGB"


def _from_array(pixels: np.ndarray, name: str) -> RgbImage:
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise ValueError(
            f"{name}: {pixels.dtype} array of shape {pixels.shape} found, expected uint8 [H, W], "
            "[H, W, 3] or [H, W, 4]"
        )
    if not pixels.size:
        raise ValueError(f"{name}: array of shape {pixels.shape} found, expected some pixels")
    if channels == 1:
        return cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_GRAY2RGB)
    return lay_on_white(pixels) if channels == 4 else pixels
