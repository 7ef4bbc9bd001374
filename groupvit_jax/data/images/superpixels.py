"""Superpixels: regions of like colour, found by `launch.prepare` and looked up in training.

They follow Felzenszwalb and Huttenlocher's graph-based segmentation (IJCV 2004), as in SegCLIP
(arXiv 2211.14813).
"""

import base64
import importlib.util
import math

import cv2
import numpy as np
from jaxtyping import Int, UInt8

from groupvit_jax.data.images.image_header import BrokenImageError, read_header
from groupvit_jax.data.images.transforms import View

__all__ = ["OUTSIDE", "check_installed", "decode", "encode", "find", "of_patches"]

OUTSIDE = 0  # where a patch shows nothing of the image; superpixels count from 1

# Superpixels are looked up at the centres of patches, which needs no more pixels than this; at 512
# pixels a side, finding them would take four times as long.
_SIDE = 256
# A superpixel has at least this share of the pixels, about a patch of the published 14 x 14. So
# there are at most 200 of them, and a byte holds their numbers.
_SMALLEST = 1 / 200
# Preference for larger regions, as a share of the pixels, too: SegCLIP's 224 of 640 x 480.
_SCALE = 1 / 1400
_SIGMA = 0.8  # of the blur before, in pixels


def check_installed(flag: str) -> None:
    """Raise ValueError if scikit-image, which finds superpixels, is missing; name the flag."""
    if importlib.util.find_spec("skimage") is None:
        raise ValueError(
            f"{flag}: scikit-image is not installed, expected `pip install -e '.[superpixels]'`"
        )


def find(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w"]:
    """Return the superpixel of each pixel, from 1 on, of the image within 256 x 256 pixels."""
    # Only preparation needs it, from the extra `superpixels`.
    from skimage.segmentation import felzenszwalb

    height, width = image.shape[:2]
    scale = min(1.0, _SIDE / max(height, width))
    size = max(1, round(scale * width)), max(1, round(scale * height))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    pixels = size[0] * size[1]
    labels = felzenszwalb(
        small, scale=_SCALE * pixels, sigma=_SIGMA, min_size=math.ceil(_SMALLEST * pixels)
    )
    return (labels + 1).astype(np.uint8)


def encode(labels: UInt8[np.ndarray, "h w"]) -> str:
    """Return the superpixels as text: a PNG in base64, about 6 kB for a photo."""
    return base64.b64encode(cv2.imencode(".png", labels)[1].tobytes()).decode()


def decode(text: str) -> UInt8[np.ndarray, "h w"]:
    """Return the superpixels that `encode` wrote.

    Raises:
      BrokenImageError: the text is something else.
    """
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise BrokenImageError(f"the superpixels of its JSON are not base64 ({error})") from error
    try:
        header = read_header(content)
    except BrokenImageError as error:
        raise BrokenImageError(f"the superpixels of its JSON are not a PNG ({error})") from error
    # Before decoding: a few bytes may declare gigabytes.
    if header.kind != "png" or max(header.height, header.width) > _SIDE:
        raise BrokenImageError(
            f"the superpixels of its JSON are {header.kind} of {header.height}x{header.width} "
            f"pixels, expected png of at most {_SIDE}x{_SIDE}"
        )
    labels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if labels is None or labels.ndim != 2 or labels.dtype != np.uint8:
        raise BrokenImageError("the superpixels of its JSON are not a PNG of 8-bit numbers")
    return labels


def of_patches(labels: UInt8[np.ndarray, "h w"], view: View, grid: int) -> Int[np.ndarray, "g g"]:
    """Return the superpixel at the centre of each patch of a training image.

    Args:
      labels: of the whole image.
      view: what the training image shows of it.
      grid: patches in height and width, g.

    Returns:
      Int32; `OUTSIDE` where an operation left nothing of the image.
    """
    centres = (np.arange(grid) + 0.5) / grid
    x, y, inside = view.sources(*np.meshgrid(centres, centres))
    height, width = labels.shape
    rows = np.clip((y * height).astype(int), 0, height - 1)
    columns = np.clip((x * width).astype(int), 0, width - 1)
    return np.where(inside, labels[rows, columns], OUTSIDE).astype(np.int32)
