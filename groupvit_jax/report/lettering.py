"""Text in pictures: anti-aliased, in any alphabet, readable on any background.

Ours beside Pillow's text because of the font: OpenCV 5 brings one with Chinese and Japanese, which
Matplotlib's DejaVu lacks, and Pillow brings none of its own.
"""

import functools

import cv2
import numpy as np

from groupvit_jax.typing import UInt8

RgbImage = UInt8[np.ndarray, "H W 3"]
Letters = UInt8[np.ndarray, "h w"]

_SMALLEST, _LARGEST = 10, 96  # pixels
_WEIGHT = 550
_NOWHERE, _PROBE_SIZE = "\U000f0000", 24  # a private character, which no font has
_WHITE, _DARK = 255.0, 18.0


def size_for(shape: tuple[int, ...]) -> int:
    """Return the font size in pixels for a picture of this shape."""
    return int(np.clip(min(shape[:2]) / 20, _SMALLEST, _LARGEST))


def fit(text: str, size: int, width: int) -> Letters:
    """Render a line of text as coverage, 0 to 255 per pixel, with a margin for the halo.

    Args:
      text: the line; truncated with an ellipsis if it doesn't fit even at the smallest size.
      size: font size in pixels; reduced if the text doesn't fit.
      width: maximum width of the result in pixels.
    """
    text = " ".join(text.split())
    letters = _letters(text, size)
    if letters.shape[1] > width and size > _SMALLEST:
        size = max(_SMALLEST, int(size * width / letters.shape[1]))
        letters = _letters(text, size)
    while letters.shape[1] > width and len(text) > 1:
        keep = min(len(text) - 2, int(len(text) * width / letters.shape[1]))
        text = text[: max(keep, 0)].rstrip() + "…"
        letters = _letters(text, size)
    return letters[:, :width]


def can_write(text: str) -> bool:
    """Return whether the font has every character; it lacks e.g. Devanagari, Thai and emoji."""
    return all(map(_has_glyph, set("".join(text.split()))))


@functools.cache
def _has_glyph(character: str) -> bool:
    # OpenCV draws one and the same box for whatever the font lacks.
    return not np.array_equal(_letters(character, _PROBE_SIZE), _letters(_NOWHERE, _PROBE_SIZE))


def line_height(size: int) -> int:
    """Return the height in pixels of a line of this font size, halo included."""
    return _letters("Ág", size).shape[0]


def stamp(image: RgbImage, letters: Letters, top: int, left: int) -> None:
    """Draw white letters with a dark halo into a picture, in place."""
    part = image[top : top + letters.shape[0], left : left + letters.shape[1]]
    letters = letters[: part.shape[0], : part.shape[1]]
    radius = 1 + letters.shape[0] // 14
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    halo = cv2.GaussianBlur(cv2.dilate(letters, kernel), (0, 0), radius / 2)
    _mix(part, halo, _DARK, 0.8)
    _mix(part, letters, _WHITE)


def ink(image: RgbImage, letters: Letters) -> None:
    """Draw dark letters into the lower left corner of a light picture, in place."""
    letters = letters[-image.shape[0] :, : image.shape[1]]
    _mix(image[-letters.shape[0] :, : letters.shape[1]], letters, _DARK)


def _mix(part: RgbImage, cover: Letters, tone: float, strength: float = 1.0) -> None:
    share = strength * cover[..., None].astype(np.float32) / 255
    part[:] = np.rint(part * (1 - share) + tone * share).astype(np.uint8)


def _letters(text: str, size: int) -> Letters:
    font, margin = _font(), 1 + size // 6
    # A rectangle around the text, from the baseline's origin: its top is negative.
    _, above, width, height = cv2.getTextSize((0, 0), text, (0, 0), font, size, _WEIGHT)
    canvas = np.zeros((height + 2 * margin, width + 2 * margin + size, 3), np.uint8)
    cv2.putText(canvas, text, (margin, margin - above), (255, 255, 255), font, size, _WEIGHT)
    return np.ascontiguousarray(canvas[:, : width + 2 * margin, 0])


@functools.cache
def _font() -> cv2.FontFace:
    return cv2.FontFace("sans")
