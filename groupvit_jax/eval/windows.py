"""Layout of sliding windows, with bucketed shapes to limit recompilation.

All of this runs on the host in NumPy: compiled programs see padded arrays of a few shapes, and
tables that mark the extent of the image in them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from groupvit_jax.eval.protocol import Protocol
from groupvit_jax.typing import Float, Int, UInt8


def resize_to_fit(
    image: UInt8[np.ndarray, "H W 3"], sides: Sequence[int]
) -> UInt8[np.ndarray, "h w 3"]:
    """Scale an image bilinearly to fit (longest, shortest) side, keeping its aspect ratio."""
    H, W = image.shape[:2]
    scale = min(max(sides) / max(H, W), min(sides) / min(H, W))
    # Rounded half up, unlike Python's `round`, which would give other sizes at .5.
    size = (max(1, int(W * scale + 0.5)), max(1, int(H * scale + 0.5)))
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Return the starts of windows along an axis; the last window is flush with the border."""
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


class Window(NamedTuple):
    """What the image tower takes.

    Attributes:
      pixels: of whole patches; zeros where they lie beyond the image.
      inside: height and width of the image's own pixels.
    """

    pixels: UInt8[np.ndarray, "h w 3"]
    inside: tuple[int, int]


class Layout(NamedTuple):
    """The windows of one image.

    Sides shorter than the protocol's window, which differ from image to image, determine no shape
    of a compiled program: `encoded` and `padded` have a step of one patch.

    Attributes:
      size: height and width of the image.
      window: height and width of its windows, smaller than the protocol's for a smaller image.
      encoded: height and width of the patches that are encoded of a window.
      padded: height and width of the arrays that hold a window.
      corners: top left corners of the windows.
      canvas: height and width that contain the windows of every image with this number of windows.
    """

    size: tuple[int, int]
    window: tuple[int, int]
    encoded: tuple[int, int]
    padded: tuple[int, int]
    corners: Int[np.ndarray, "V 2"]
    canvas: tuple[int, int]

    def cut(self, image: UInt8[np.ndarray, "H W 3"]) -> list[Window]:
        """Return the windows."""
        # Of a partial patch either less than the window is encoded ("drop"), or more ("pad").
        h, w = (min(sides) for sides in zip(self.window, self.encoded, strict=True))
        margins = ((0, self.encoded[0] - h), (0, self.encoded[1] - w), (0, 0))
        parts = [image[y : y + h, x : x + w] for y, x in self.corners.tolist()]
        if self.encoded != (h, w):
            parts = [np.pad(part, margins) for part in parts]
        return [Window(part, (h, w)) for part in parts]

    def stretches(self, patch_size: int) -> list[Float[np.ndarray, "H h"]]:
        """Return the matrices that resize values of patches to the rows and to the columns."""
        return [
            _stretch(encoded, max(encoded, side), padded, patch_size)
            for encoded, side, padded in zip(self.encoded, self.window, self.padded, strict=True)
        ]


def lay_out(size: tuple[int, int], protocol: Protocol, patch_size: int) -> Layout:
    """Return the layout of the windows of an image of `size` (height and width)."""
    h, w = (min(length, protocol.window) for length in size)
    rows = window_starts(size[0], h, protocol.stride)
    columns = window_starts(size[1], w, protocol.stride)
    corners = np.array([(y, x) for y in rows for x in columns], np.int32)
    drop = protocol.partial_patches == "drop"
    # A side shorter than one patch is padded by either rule.
    encoded = [
        max(side // patch_size if drop else -(-side // patch_size), 1) * patch_size
        for side in (h, w)
    ]
    padded = [min(side + drop * patch_size, protocol.window) for side in encoded]
    reach = [protocol.stride * (len(starts) - 1) for starts in (rows, columns)]
    canvas = padded[0] + reach[0], padded[1] + reach[1]
    return Layout(size, (h, w), (encoded[0], encoded[1]), (padded[0], padded[1]), corners, canvas)


def round_up_size(size: tuple[int, int]) -> tuple[int, int]:
    """Round `size` up to one of four sizes per octave, to limit recompilation."""

    def round_up(length: int) -> int:
        # An eighth of the next power of two: four steps from one power to the next.
        step = max(1, 2 ** ((length - 1).bit_length() - 3))
        return -(-length // step) * step

    return round_up(size[0]), round_up(size[1])


class Resampling(NamedTuple):
    """Interpolation table of a line: each pixel is between `lower` and `upper`, at `weight`.

    Pixels beyond the end repeat the last one.
    """

    lower: Int[np.ndarray, " N"]
    upper: Int[np.ndarray, " N"]
    weight: Float[np.ndarray, " N"]


def resampling(old: int, new: int, padded: int, step: int = 1) -> Resampling:
    """Return the table of a bilinear resize with half-pixel centres, without antialiasing.

    Args:
      old: length of the input line, in pixels.
      new: length of the output line, in pixels.
      padded: length of the table.
      step: pixels between input values (the side of a patch).
    """
    index = np.minimum(np.arange(padded), new - 1)
    last = -(-old // step) - 1
    place = np.clip((index + 0.5) * old / (new * step) - 0.5, 0, last)
    lower = np.floor(place).astype(np.int32)
    weight = (place - lower).astype(np.float32)
    return Resampling(lower, np.minimum(lower + 1, last).astype(np.int32), weight)


def _stretch(old: int, new: int, padded: int, step: int) -> Float[np.ndarray, "H h"]:
    """Return the table of `resampling` as a matrix."""
    lower, upper, weight = resampling(old, new, padded, step)
    matrix = np.zeros((padded, old // step), np.float32)
    lines = np.arange(padded)
    matrix[lines, lower] = 1 - weight
    # Added, since at the end both are the same input.
    matrix[lines, upper] += weight
    return matrix
