"""Where sliding windows lie, and how images of any size get shapes that few programs fit.

All of this runs on the host, in NumPy: a compiled program sees padded arrays of one of a few
shapes, and tables that say where the image ends in them.
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
    """Scales an image as far as its sides fit (longest, shortest), keeping its ratio; bilinear."""
    H, W = image.shape[:2]
    scale = min(max(sides) / max(H, W), min(sides) / min(H, W))
    size = (max(1, int(W * scale + 0.5)), max(1, int(H * scale + 0.5)))
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Returns where windows begin along an axis; the last one is flush with the border."""
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


class Layout(NamedTuple):
    """The windows of one image.

    Attributes:
      size: height and width of the image.
      window: height and width of its windows, smaller than the protocol's if the image is.
      corners: where they begin.
      canvas: height and width that hold these windows for every image with as many of them.
    """

    size: tuple[int, int]
    window: tuple[int, int]
    corners: Int[np.ndarray, "V 2"]
    canvas: tuple[int, int]

    def cut(self, image: UInt8[np.ndarray, "H W 3"]) -> list[UInt8[np.ndarray, "h w 3"]]:
        """Returns the windows' pixels."""
        h, w = self.window
        return [image[y : y + h, x : x + w] for y, x in self.corners.tolist()]


def lay_out(size: tuple[int, int], protocol: Protocol) -> Layout:
    """Returns the windows of an image of `size` (height and width)."""
    h, w = (min(length, protocol.window) for length in size)
    rows = window_starts(size[0], h, protocol.stride)
    columns = window_starts(size[1], w, protocol.stride)
    corners = np.array([(y, x) for y in rows for x in columns], np.int32)
    reach = protocol.stride * (len(rows) - 1), protocol.stride * (len(columns) - 1)
    return Layout(size, (h, w), corners, (h + reach[0], w + reach[1]))


def round_up_size(size: tuple[int, int]) -> tuple[int, int]:
    """Returns the least size from `size` on among four an octave, so that programs are few."""

    def round_up(length: int) -> int:
        step = max(1, 2 ** ((length - 1).bit_length() - 3))
        return -(-length // step) * step

    return round_up(size[0]), round_up(size[1])


class Resampling(NamedTuple):
    """Where each pixel of a line comes from: between `lower` and `upper`, at `weight`.

    Pixels beyond the line's end repeat its last one.
    """

    lower: Int[np.ndarray, " N"]
    upper: Int[np.ndarray, " N"]
    weight: Float[np.ndarray, " N"]


def resampling(old: int, new: int, padded: int, step: int = 1) -> Resampling:
    """Returns the table of a bilinear resize: half-pixel centres, not antialiased.

    Args:
      old: length of the line that is read, in pixels.
      new: length of the line that is made, in pixels.
      padded: length of the table.
      step: pixels between the values that are read (the side of a patch).
    """
    index = np.minimum(np.arange(padded), new - 1)
    last = -(-old // step) - 1
    place = np.clip((index + 0.5) * old / (new * step) - 0.5, 0, last)
    lower = np.floor(place).astype(np.int32)
    weight = (place - lower).astype(np.float32)
    return Resampling(lower, np.minimum(lower + 1, last).astype(np.int32), weight)
