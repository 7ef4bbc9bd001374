"""Reads a path, PIL image or array as upright RGB pixels."""

import http.client
import os
import urllib.request
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from groupvit_jax.data.images.decode import MAX_PIXELS, decode, lay_on_white

RgbImage = UInt8[np.ndarray, "H W 3"]
LAYOUTS = ("HWC", "CHW")
_TIMEOUT, _MAX_BYTES = 30, 200_000_000


def read_photo(
    photo: Any, name: str = "image", layout: str = "HWC", max_pixels: int = MAX_PIXELS
) -> RgbImage:
    """Return upright RGB pixels, with transparency composited on white.

    Args:
      photo: a file's path or `http(s)://` address; its bytes; a `PIL.Image`; or an array or tensor,
        UInt8 or floats from 0 to 1, [H, W] (grey), [H, W, 3] (RGB) or [H, W, 4] (RGBA).
      name: name for messages if the image isn't a file.
      layout: of arrays: "HWC", or "CHW" for [3, H, W], as PyTorch has them.
      max_pixels: larger files are refused.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it has another type or shape, is too large, or can't be fetched or decoded.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout: {layout!r} found, expected one of {LAYOUTS}")
    if isinstance(photo, bytes | bytearray | memoryview):
        return _decode(bytes(photo), name, max_pixels)
    if isinstance(photo, str) and photo.startswith(("http://", "https://")):
        return _decode(_fetch(photo), photo, max_pixels)
    if isinstance(photo, str | os.PathLike):
        return _read_file(Path(photo), max_pixels)
    if isinstance(photo, Image.Image):
        return _from_pil(photo, name)
    if not hasattr(photo, "__array__"):
        raise ValueError(
            f"{name}: {type(photo).__name__} found, expected a path, a PIL image or an array"
        )
    pixels = np.asarray(photo)
    if layout == "CHW" and pixels.ndim == 3:
        pixels = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    return _from_array(_as_bytes(pixels, name), name)


def _read_file(path: Path, max_pixels: int) -> RgbImage:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return _decode(path.read_bytes(), str(path), max_pixels)


def _decode(data: bytes, name: str, max_pixels: int) -> RgbImage:
    try:
        return decode(data, max_pixels=max_pixels)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _fetch(url: str) -> bytes:
    """Return what an address serves, up to a size that no photo has."""
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
            # One byte more than allowed is enough to tell.
            data = response.read(_MAX_BYTES + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ValueError(f"{url}: can't be fetched ({error})") from error
    if len(data) > _MAX_BYTES:
        raise ValueError(f"{url}: more than {_MAX_BYTES:,} bytes, expected a photo")
    return data


def _as_bytes(pixels: np.ndarray, name: str) -> np.ndarray:
    """Return floats from 0 to 1 as UInt8; other types stay, to be refused if they don't fit."""
    if not np.issubdtype(pixels.dtype, np.floating) or not pixels.size:
        return pixels
    low, high = float(pixels.min()), float(pixels.max())
    if not 0 <= low <= high <= 1:  # NaN too
        raise ValueError(
            f"{name}: floats from {low:.3g} to {high:.3g} found, expected 0 to 1 (or uint8), "
            "before any normalisation"
        )
    return np.rint(pixels * 255).astype(np.uint8)


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
    first = pixels.shape[0] if pixels.ndim == 3 and channels not in (1, 3, 4) else 0
    hint = '; for [3, H, W] say layout="CHW"' if first in (1, 3, 4) else ""
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise ValueError(
            f"{name}: {pixels.dtype} array of shape {pixels.shape} found, expected uint8 [H, W], "
            f"[H, W, 3] or [H, W, 4]{hint}"
        )
    if not pixels.size:
        raise ValueError(f"{name}: array of shape {pixels.shape} found, expected some pixels")
    if channels == 1:
        return cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_GRAY2RGB)
    return lay_on_white(pixels) if channels == 4 else pixels
