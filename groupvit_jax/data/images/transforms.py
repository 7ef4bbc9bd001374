"""From encoded bytes to the uint8 crop that crosses to the device, for training and evaluation.

Randomness comes from the generator passed in, in a fixed order. No function changes its input.
"""

import math
from types import SimpleNamespace

import cv2
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from groupvit_jax.data.images.augment import rand_augment
from groupvit_jax.data.images.decode import Box, BrokenImageError, decode_box, orient, read_header

__all__ = ["MIN_SIDE", "init_worker", "random_resized_crop", "resize", "resize_and_center_crop"]
__all__ += ["resize_like_pil", "sample_crop", "train_transform"]

Image = UInt8[np.ndarray, "H W 3"]
Resized = UInt8[np.ndarray, "h w 3"]
Square = UInt8[np.ndarray, "S S 3"]

MIN_SIDE = 8  # shorter ones are tracking pixels and rules; there is nothing to see in them

_CROP_ATTEMPTS = 10
_MARGIN = 1.5  # how much larger than the result an image reduced beforehand has to stay


def init_worker() -> None:
    """Sets OpenCV up for one of several processes that load data.

    One thread each, and none of its own multi-line log messages about broken images: they are
    reported by `BrokenImageError`.
    """
    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def train_transform(
    data: bytes, size: int, augment: ConfigDict | SimpleNamespace, rng: np.random.Generator
) -> Square:
    """Decodes, crops, flips and augments one training image.

    Only the rows down to the end of the crop are decoded, at half the size or less where the crop
    is at least three times as large as the result: at twice it, libjpeg's sharper reduction would
    be 4 grey levels (root mean square) from the published augmentation.

    Args:
      data: an encoded image.
      size: side of the result, S.
      augment: `config.data.augment`.
      rng: source of all randomness.

    Returns:
      UInt8 [S, S, 3], RGB.

    Raises:
      BrokenImageError: undecodable, too large, or a side shorter than `MIN_SIDE`.
    """
    header = read_header(data)
    if min(header.height, header.width) < MIN_SIDE:
        found = f"{header.height}x{header.width}"
        raise BrokenImageError(f"{header.kind} of {found} pixels; expected at least {MIN_SIDE}")
    # The distribution of crops is symmetric in x and y: drawn before the image is turned upright.
    area, ratio = (augment.min_area, augment.max_area), (augment.min_ratio, augment.max_ratio)
    box = sample_crop(header.height, header.width, rng, area=area, ratio=ratio)
    crop = resize(decode_box(data, header, box, min_size=math.ceil(_MARGIN * size)), size, size)
    image = orient(crop, header.orientation)
    if rng.random() < augment.flip:
        image = cv2.flip(image, 1)
    return rand_augment(
        image,
        rng,
        num_ops=augment.num_ops,
        magnitude=augment.magnitude,
        magnitude_std=augment.magnitude_std,
    )


def random_resized_crop(
    image: Image,
    size: int,
    rng: np.random.Generator,
    *,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Square:
    """Cuts a random box out of an image (see `sample_crop`) and resizes it to a square."""
    box = sample_crop(image.shape[0], image.shape[1], rng, area=area, ratio=ratio)
    return resize(_cut(image, box), size, size)


def sample_crop(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Draws the box of a random resized crop (Inception's, as torchvision and timm have it).

    Args:
      height: rows of the image.
      width: columns of the image.
      rng: source of all randomness.
      area: range of the box's share of the image, uniform.
      ratio: range of width / height, log-uniform.

    Returns:
      The first of ten drawn boxes that fits; else the largest central one within `ratio`.
    """
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_CROP_ATTEMPTS):
        # As rng.uniform(low, high), to the last bit, which takes four times as long.
        target = (area[0] + (area[1] - area[0]) * rng.random()) * height * width
        aspect = math.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * rng.random())
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(height - h + 1))
            return Box(top, int(rng.integers(width - w + 1)), h, w)
    w, h = width, height
    if width / height < ratio[0]:
        h = min(round(width / ratio[0]), height)
    elif width / height > ratio[1]:
        w = min(round(height * ratio[1]), width)
    return Box((height - h) // 2, (width - w) // 2, h, w)


def resize(image: Image, height: int, width: int) -> Resized:
    """Resizes bilinearly, without aliasing, fast: for training.

    PIL, which the published models were trained with, widens its triangular filter with the
    reduction s; its variance is then s^2 / 6 pixels^2. Here a short blur adds the (s^2 - 1) / 6
    that plain bilinear interpolation lacks. `resize_like_pil` is exact and far slower.
    """
    # Intel's functions take half the time of OpenCV's and differ from them by a grey level in an
    # eighth of the values. The setting is the thread's: others that resize must not find it.
    cv2.ipp.setUseIPP_NotExact(True)
    try:
        return _resize(image, height, width)
    finally:
        cv2.ipp.setUseIPP_NotExact(False)


def _resize(image: Image, height: int, width: int) -> Resized:
    # Leaves a reduction of 1.5 to 3: enough for the interpolation to hide the coarser grid.
    rows, columns = _shrunk(image.shape[0], height), _shrunk(image.shape[1], width)
    if (rows, columns) != image.shape[:2]:
        image = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
    vertical, horizontal = _missing_variance(rows / height), _missing_variance(columns / width)
    if max(vertical, horizontal) > 0.02:
        taps = _taps(horizontal), _taps(vertical)
        image = cv2.sepFilter2D(image, -1, *taps, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def resize_like_pil(image: Image, height: int, width: int) -> Resized:
    """Resizes bilinearly with PIL's antialiasing, to one grey level: for evaluation."""
    rows = _resize_axis(image.astype(np.float32), 1, width)
    return np.clip(np.rint(_resize_axis(rows, 0, height)), 0, 255).astype(np.uint8)


def resize_and_center_crop(image: Image, size: int = 256, crop: int = 224) -> Square:
    """Resizes the shorter side to `size` and cuts the central square (ImageNet's evaluation).

    Args:
      image: UInt8 [H, W, 3].
      size: the shorter side after resizing.
      crop: side of the square, at most `size`.

    Returns:
      UInt8 [crop, crop, 3], as torchvision's Resize and CenterCrop give on PIL images.
    """
    height, width = image.shape[:2]
    shorter = min(height, width)
    resized = resize_like_pil(image, size * height // shorter, size * width // shorter)
    top, left = (round((side - crop) / 2) for side in resized.shape[:2])
    return resized[top : top + crop, left : left + crop]


def _cut(image: Image, box: Box) -> Resized:
    return image[box.top : box.top + box.height, box.left : box.left + box.width]


def _shrunk(old: int, new: int) -> int:
    """Size after averaging over as many whole pixels as leave at least `_MARGIN * new`."""
    return old // max(int(old / (_MARGIN * new)), 1)


def _missing_variance(reduction: float) -> float:
    """Of PIL's filter over that of plain bilinear interpolation, in pixels^2."""
    return max(reduction**2 - 1, 0) / 6


def _taps(variance: float) -> np.ndarray:
    """A blur with no negative tap, for reductions up to 3."""
    if variance > 0.5:
        half = _taps(variance / 2)
        return np.convolve(half, half)
    return np.array([variance / 2, 1 - variance, variance / 2])


def _resize_axis(image: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Filters one axis with a triangle as wide as the reduction, edges renormalised."""
    old = image.shape[axis]
    scale = old / size
    support = max(scale, 1.0)
    centres = (np.arange(size) + 0.5) * scale
    first = np.maximum((centres - support + 0.5).astype(int), 0)
    taps = first[:, None] + np.arange(int(2 * support) + 2)
    weights = np.maximum(1 - np.abs(taps + 0.5 - centres[:, None]) / support, 0) * (taps < old)
    weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    shape = [1, 1, 1]
    shape[axis] = size
    result = np.zeros([size if i == axis else n for i, n in enumerate(image.shape)], np.float32)
    for tap, weight in zip(np.minimum(taps, old - 1).T, weights.T, strict=True):
        result += weight.reshape(shape) * image.take(tap, axis)
    return result
