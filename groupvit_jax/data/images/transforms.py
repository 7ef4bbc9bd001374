"""Encoded images to the uint8 crops that are sent to the device, for training and evaluation.

All randomness comes from the generator argument, in a fixed order. No function modifies its input.
"""

import dataclasses
import math
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from groupvit_jax.data.images.augment import (
    Operation,
    apply_operations,
    draw_operations,
    shift_hue,
    source_of,
    to_grayscale,
)
from groupvit_jax.data.images.decode import (
    Box,
    BrokenImageError,
    ImageHeader,
    decode_box,
    orient,
    read_header,
)

__all__ = ["MIN_SIDE", "Augmentation", "View", "init_worker", "random_resized_crop", "resize"]
__all__ += ["resize_and_center_crop", "resize_like_pil", "sample_crop", "train_transform"]
__all__ += ["viewed_transform"]

Image = UInt8[np.ndarray, "H W 3"]
Resized = UInt8[np.ndarray, "h w 3"]
Square = UInt8[np.ndarray, "S S 3"]

MIN_SIDE = 8  # smaller images are tracking pixels and separators

_CROP_ATTEMPTS = 10
_MARGIN = 1.5  # minimum ratio of a pre-reduced image to the result


def init_worker() -> None:
    """Configure OpenCV in a data loading process.

    One thread per process, and no multi-line log messages about broken images: `BrokenImageError`
    reports them.
    """
    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Augmentation of training images on the host; the fields of `config.data.augment`.

    Random erasing is missing: the device does it (`models.preprocess`).

    Attributes:
      min_area: smallest crop, as a share of the image's area.
      max_area: largest crop.
      min_ratio: smallest width / height of a crop.
      max_ratio: largest.
      flip: probability of a horizontal flip.
      num_ops: operations of RandAugment an image.
      magnitude: mean strength of an operation, 0 to 10.
      magnitude_std: standard deviation of the strength.
      hue: largest turn of the hues to either side, as a share of the colour circle, up to 0.5.
      grayscale: probability that the colours are taken away.
    """

    min_area: float = 0.08
    max_area: float = 1.0
    min_ratio: float = 3 / 4
    max_ratio: float = 4 / 3
    flip: float = 0.5
    num_ops: int = 2
    magnitude: float = 9.0
    magnitude_std: float = 0.5
    hue: float = 0.0
    grayscale: float = 0.0


@dataclasses.dataclass(frozen=True)
class View:
    """What a training image shows of its image, and how.

    Attributes:
      header: of the encoded image.
      box: the crop, in the image as stored.
      flipped: whether left and right were exchanged.
      operations: of RandAugment, in their order.
    """

    header: ImageHeader
    box: Box
    flipped: bool
    operations: Sequence[Operation]

    def sources(
        self, x: Float[np.ndarray, "*P"], y: Float[np.ndarray, "*P"]
    ) -> tuple[Float[np.ndarray, "*P"], Float[np.ndarray, "*P"], Bool[np.ndarray, "*P"]]:
        """Return which places of the image are shown at places of the training image.

        Args:
          x: from 0 to 1 over the width of the training image.
          y: from 0 to 1 over its height.

        Returns:
          x and y, from 0 to 1 over the image; and whether they are shown at all: operations that
          move pixels leave parts empty.

        Raises:
          BrokenImageError: the image isn't stored upright.
        """
        if self.header.orientation != 1:
            raise BrokenImageError(
                f"EXIF orientation {self.header.orientation}; expected an upright image, as "
                "launch.prepare stores it"
            )
        shown = np.ones(np.shape(x), bool)
        for operation in reversed(self.operations):
            x, y, inside = source_of(operation, x, y)
            shown &= inside
        x = 1 - x if self.flipped else x
        return (
            (self.box.left + x * self.box.width) / self.header.width,
            (self.box.top + y * self.box.height) / self.header.height,
            shown,
        )


def train_transform(
    data: bytes, size: int, augment: Augmentation, rng: np.random.Generator
) -> Square:
    """Decode, crop, flip and augment one training image.

    Rows below the crop are not decoded. A crop of at least three times the output size is decoded
    at half scale or less; at a ratio of two, libjpeg's sharper reduction would deviate from the
    published augmentation by 4 grey levels (root mean square).

    Args:
      data: an encoded image.
      size: side of the result, S.
      augment: how strongly.
      rng: source of all randomness.

    Returns:
      UInt8 [S, S, 3], RGB.

    Raises:
      BrokenImageError: undecodable, too large, or a side shorter than `MIN_SIDE`.
    """
    return viewed_transform(data, size, augment, rng)[0]


def viewed_transform(
    data: bytes, size: int, augment: Augmentation, rng: np.random.Generator
) -> tuple[Square, View]:
    """Return the image of `train_transform`, and what it shows."""
    header = read_header(data)
    if min(header.height, header.width) < MIN_SIDE:
        found = f"{header.height}x{header.width}"
        raise BrokenImageError(f"{header.kind} of {found} pixels; expected at least {MIN_SIDE}")
    # Crops are drawn before the image is turned upright: their distribution is symmetric in x and
    # y.
    area, ratio = (augment.min_area, augment.max_area), (augment.min_ratio, augment.max_ratio)
    box = sample_crop(header.height, header.width, rng, area=area, ratio=ratio)
    crop = resize(decode_box(data, header, box, min_size=math.ceil(_MARGIN * size)), size, size)
    image = orient(crop, header.orientation)
    flipped = rng.random() < augment.flip
    if flipped:
        image = cv2.flip(image, 1)
    operations = draw_operations(
        rng,
        num_ops=augment.num_ops,
        magnitude=augment.magnitude,
        magnitude_std=augment.magnitude_std,
    )
    image = _change_colours(apply_operations(image, operations), augment, rng)
    return image, View(header, box, flipped, operations)


def _change_colours(image: Square, augment: Augmentation, rng: np.random.Generator) -> Square:
    # What is switched off draws nothing: the other draws of a seed stay the same.
    if augment.hue:
        image = shift_hue(image, rng.uniform(-augment.hue, augment.hue))
    if augment.grayscale and rng.random() < augment.grayscale:
        image = to_grayscale(image)
    return image


def random_resized_crop(
    image: Image,
    size: int,
    rng: np.random.Generator,
    *,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Square:
    """Crop a random box (see `sample_crop`) and resize it to a square."""
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
    """Draw the box of a random resized crop, with the algorithm of torchvision and timm.

    Args:
      height: rows of the image.
      width: columns of the image.
      rng: source of all randomness.
      area: range of the box's share of the image, uniform.
      ratio: range of width / height, log-uniform.

    Returns:
      The first of ten drawn boxes that fits, or else the largest central box within `ratio`.
    """
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_CROP_ATTEMPTS):
        # Bit-identical to rng.uniform(low, high), which takes four times as long.
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
    """Resize bilinearly with fast, approximate antialiasing, for training.

    PIL, which the published models were trained with, widens its triangular filter by the reduction
    factor s, to a variance of s^2 / 6 pixels^2. A short blur adds the (s^2 - 1) / 6 that plain
    bilinear interpolation lacks. `resize_like_pil` is exact and much slower.
    """
    # Intel's functions take half the time of OpenCV's and differ by one grey level in an eighth of
    # the values. The setting is per thread; restore it for other callers of resize.
    cv2.ipp.setUseIPP_NotExact(True)
    try:
        return _resize(image, height, width)
    finally:
        cv2.ipp.setUseIPP_NotExact(False)


def _resize(image: Image, height: int, width: int) -> Resized:
    # Leaves a reduction of 1.5 to 3, for which interpolation hides the coarser grid.
    rows, columns = _shrunk(image.shape[0], height), _shrunk(image.shape[1], width)
    if (rows, columns) != image.shape[:2]:
        image = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
    vertical, horizontal = _missing_variance(rows / height), _missing_variance(columns / width)
    if max(vertical, horizontal) > 0.02:
        taps = _taps(horizontal), _taps(vertical)
        image = cv2.sepFilter2D(image, -1, *taps, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def resize_like_pil(image: Image, height: int, width: int) -> Resized:
    """Resize bilinearly with PIL's antialiasing, to one grey level, for evaluation."""
    rows = _resize_axis(image.astype(np.float32), 1, width)
    return np.clip(np.rint(_resize_axis(rows, 0, height)), 0, 255).astype(np.uint8)


def resize_and_center_crop(image: Image, size: int = 256, crop: int = 224) -> Square:
    """Resize the shorter side to `size` and crop the central square, as in ImageNet evaluation.

    Args:
      image: UInt8 [H, W, 3].
      size: the shorter side after resizing.
      crop: side of the square, at most `size`.

    Returns:
      UInt8 [crop, crop, 3], equal to torchvision's Resize and CenterCrop on PIL images.
    """
    height, width = image.shape[:2]
    shorter = min(height, width)
    # torchvision truncates the longer side and rounds the crop's corner.
    resized = resize_like_pil(image, size * height // shorter, size * width // shorter)
    top, left = (round((side - crop) / 2) for side in resized.shape[:2])
    return resized[top : top + crop, left : left + crop]


def _cut(image: Image, box: Box) -> Resized:
    return image[box.top : box.top + box.height, box.left : box.left + box.width]


def _shrunk(old: int, new: int) -> int:
    """Return the size after averaging whole pixels that leaves at least `_MARGIN * new`."""
    return old // max(int(old / (_MARGIN * new)), 1)


def _missing_variance(reduction: float) -> float:
    """Return by how much the variance of PIL's filter exceeds plain bilinear's, in pixels^2."""
    return max(reduction**2 - 1, 0) / 6


def _taps(variance: float) -> np.ndarray:
    """Return a blur without negative taps, for reductions up to 3."""
    if variance > 0.5:
        # Variances of filters applied one after the other add up.
        half = _taps(variance / 2)
        return np.convolve(half, half)
    return np.array([variance / 2, 1 - variance, variance / 2])


def _resize_axis(image: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Filter one axis with a triangle as wide as the reduction, renormalised at the edges."""
    old = image.shape[axis]
    scale = old / size
    support = max(scale, 1.0)
    centres = (np.arange(size) + 0.5) * scale
    first = np.maximum((centres - support + 0.5).astype(int), 0)
    taps = first[:, None] + np.arange(int(2 * support) + 2)  # [size, taps]
    weights = np.maximum(1 - np.abs(taps + 0.5 - centres[:, None]) / support, 0) * (taps < old)
    weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    shape = [1, 1, 1]
    shape[axis] = size
    result = np.zeros([size if i == axis else n for i, n in enumerate(image.shape)], np.float32)
    # Over taps, of which there are few; those clamped to the last pixel have weight 0.
    for tap, weight in zip(np.minimum(taps, old - 1).T, weights.T, strict=True):
        result += weight.reshape(shape) * image.take(tap, axis)
    return result
