"""RandAugment in timm's variant `rand-m9-mstd0.5-inc1`, on uint8 arrays with OpenCV.

Sources: RandAugment (arXiv 1909.13719) and the documented behaviour of timm (Apache-2.0), whose
operations are PIL's. Each operation agrees with PIL's to two grey levels, geometric ones outside
the filled border.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

__all__ = ["FILL", "OPERATIONS", "Operation", "apply_operations", "draw_operations"]
__all__ += ["rand_augment", "shift_hue", "source_of", "to_grayscale"]

Image = UInt8[np.ndarray, "H W 3"]
Fractions = Float[np.ndarray, "*P"]

FILL = (124, 116, 104)  # 255 * ImageNet's mean: fills areas uncovered by geometric operations
_MAX_LEVEL = 10.0


class Operation(NamedTuple):
    """An operation that was drawn: its name in `OPERATIONS` and its strength."""

    name: str
    strength: float


def rand_augment(
    image: Image,
    rng: np.random.Generator,
    *,
    num_ops: int = 2,
    magnitude: float = 9.0,
    magnitude_std: float = 0.5,
    probability: float = 0.5,
) -> Image:
    """Apply `num_ops` operations drawn uniformly, each with a probability.

    Args:
      image: UInt8 [H, W, 3], RGB; not changed.
      rng: source of all randomness.
      num_ops: operations drawn, with replacement.
      magnitude: mean level of an operation, 0 to 10.
      magnitude_std: standard deviation of the level, which is clipped to 0-10.
      probability: that a drawn operation is applied.

    Returns:
      UInt8 [H, W, 3]; the input itself if no operation is applied.
    """
    drawn = draw_operations(
        rng,
        num_ops=num_ops,
        magnitude=magnitude,
        magnitude_std=magnitude_std,
        probability=probability,
    )
    return apply_operations(image, drawn)


def apply_operations(image: Image, operations: Iterable[Operation]) -> Image:
    """Return the image after the operations; the input itself if there are none."""
    for name, strength in operations:
        image = OPERATIONS[name](image, strength)
    return image


def draw_operations(
    rng: np.random.Generator,
    *,
    num_ops: int = 2,
    magnitude: float = 9.0,
    magnitude_std: float = 0.5,
    probability: float = 0.5,
) -> list[Operation]:
    """Draw the operations that `rand_augment` applies, of the same arguments."""
    names, drawn = tuple(OPERATIONS), []
    for _ in range(num_ops):
        name = names[rng.integers(len(names))]
        if rng.random() < probability:
            level = min(max(rng.normal(magnitude, magnitude_std), 0.0), _MAX_LEVEL)
            sign = 1 if rng.random() < 0.5 else -1
            drawn.append(Operation(name, sign * level / _MAX_LEVEL))
    return drawn


def shift_hue(image: Image, share: float) -> Image:
    """Turn all hues by a share of the colour circle, -0.5 to 0.5, in steps of 1/180."""
    hue, saturation, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
    turned = ((hue.astype(np.int16) + round(180 * share)) % 180).astype(np.uint8)
    return cv2.cvtColor(cv2.merge((turned, saturation, value)), cv2.COLOR_HSV2RGB)


def to_grayscale(image: Image) -> Image:
    """Return the image without its colours, three times the same channel."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def source_of(
    operation: Operation, x: Fractions, y: Fractions
) -> tuple[Fractions, Fractions, Bool[np.ndarray, "*P"]]:
    """Return which places of its input, a square, an operation shows at places of its result.

    Args:
      operation: any; most move nothing.
      x: from 0 to 1 over the width of the result.
      y: from 0 to 1 over its height.

    Returns:
      x and y in the input, and whether they are in it; elsewhere the result is `FILL`.
    """
    if operation.name in GEOMETRIES:
        a, b, c, d, e, f = GEOMETRIES[operation.name](operation.strength, 1, 1)
        x, y = a * x + b * y + c, d * x + e * y + f
    return x, y, (x >= 0) & (x < 1) & (y >= 0) & (y < 1)


def _auto_contrast(image: Image, strength: float) -> Image:
    """Stretch each channel to 0-255."""
    del strength
    planes = cv2.split(image)
    for plane in planes:
        low, high, _, _ = cv2.minMaxLoc(plane)
        if high > low:
            scale = 255.0 / (high - low)
            _scale(plane, scale, -low * scale, out=plane)
    return cv2.merge(planes)


def _equalize(image: Image, strength: float) -> Image:
    """Equalise each channel's histogram; like PIL, exclude the brightest value from the step."""
    del strength
    planes = cv2.split(image)
    for plane in planes:
        counts = cv2.calcHist([plane], [0], None, [256], [0, 256]).ravel().astype(np.int64)
        step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
        if step:
            values = (step // 2 + np.cumsum(counts) - counts) // step
            cv2.LUT(plane, np.minimum(values, 255).astype(np.uint8), dst=plane)
    return cv2.merge(planes)


def _invert(image: Image, strength: float) -> Image:
    del strength
    return cv2.bitwise_not(image)


def _posterize(image: Image, strength: float) -> Image:
    """Keep 4 bits at level 0, 1 bit at level 10 (timm's 0 bits are refused by current PIL)."""
    bits = max(4 - int(abs(strength) * 4), 1)
    # A mask of the highest bits.
    return image & np.uint8(256 - (1 << (8 - bits)))


def _solarize(image: Image, strength: float) -> Image:
    """Invert values above a threshold that falls from 256 at level 0 to 0 at level 10."""
    threshold = 256 - int(abs(strength) * 256)
    # 255 where it is reached, and v ^ 255 = 255 - v.
    _, reached = cv2.threshold(image, threshold - 1, 255, cv2.THRESH_BINARY)
    return cv2.bitwise_xor(image, reached)


def _solarize_add(image: Image, strength: float) -> Image:
    """Add up to 110 to values below 128."""
    _, added = cv2.threshold(image, 127, int(abs(strength) * 110), cv2.THRESH_BINARY_INV)
    # OpenCV's addition stops at 255, NumPy's would wrap around.
    return cv2.add(image, added)


def _enhancement(strength: float) -> float:
    """PIL's enhancement factor: 1 changes nothing, 0.1-1.9 at level 10."""
    return max(1.0 + 0.9 * strength, 0.1)


def _color(image: Image, strength: float) -> Image:
    """Blend with the grey image, or away from it."""
    factor = _enhancement(strength)
    return cv2.addWeighted(image, factor, to_grayscale(image), 1.0 - factor, 0.0)


def _contrast(image: Image, strength: float) -> Image:
    """Blend with the mean grey, or away from it."""
    factor = _enhancement(strength)
    # PIL, too, takes the mean as a whole number.
    mean = math.floor(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return _scale(image, factor, (1.0 - factor) * mean)


def _brightness(image: Image, strength: float) -> Image:
    """Blend with black, or away from it."""
    return _scale(image, _enhancement(strength), 0.0)


def _scale(
    image: np.ndarray, factor: float, offset: float, out: np.ndarray | None = None
) -> np.ndarray:
    """Return factor * image + offset within 0-255, rounded (PIL rounds down)."""
    # Vectorised, unlike a look-up table. addWeighted with a second weight of 0 avoids the absolute
    # value that convertScaleAbs takes.
    return cv2.addWeighted(image, factor, image, 0.0, offset, dst=out)


def _sharpness(image: Image, strength: float) -> Image:
    """Blend with a smoothed image, or away from it; border pixels are unchanged, as in PIL."""
    factor = _enhancement(strength)
    # PIL smooths with [[1, 1, 1], [1, 5, 1], [1, 1, 1]] / 13: 9/13 of a box and 4/13 of the pixel.
    box, pixel = (1.0 - factor) * 9 / 13, factor + (1.0 - factor) * 4 / 13
    result = cv2.addWeighted(cv2.blur(image, (3, 3)), box, image, pixel, 0.0)
    result[[0, -1]] = image[[0, -1]]
    result[:, [0, -1]] = image[:, [0, -1]]
    return result


def _affine(image: Image, a: float, b: float, c: float, d: float, e: float, f: float) -> Image:
    """Samples pixel (x, y) at (ax + by + c, dx + ey + f) bilinearly, in PIL's coordinates.

    PIL's coordinates refer to pixel corners, OpenCV's to pixel centres.
    """
    matrix = np.array([[a, b, c + (a + b - 1) / 2], [d, e, f + (d + e - 1) / 2]])
    size = (image.shape[1], image.shape[0])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    # Four channels warp 1.6 times as fast as three, with the same result.
    warped = cv2.warpAffine(
        cv2.cvtColor(image, cv2.COLOR_RGB2RGBA), matrix, size, flags=flags, borderValue=(*FILL, 0)
    )
    return cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB)


Affine = tuple[float, float, float, float, float, float]
# (strength, width, height) -> where pixels come from, see `_affine`.
Geometry = Callable[[float, int, int], Affine]


def _rotation(strength: float, width: int, height: int) -> Affine:
    """Rotate by up to 30 degrees about the centre; positive is counter-clockwise."""
    angle = math.radians(30.0 * strength)
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = width / 2, height / 2
    return cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y


def _shear_x(strength: float, width: int, height: int) -> Affine:
    return 1.0, 0.3 * strength, 0.0, 0.0, 1.0, 0.0


def _shear_y(strength: float, width: int, height: int) -> Affine:
    return 1.0, 0.0, 0.0, 0.3 * strength, 1.0, 0.0


def _translation_x(strength: float, width: int, height: int) -> Affine:
    return 1.0, 0.0, 0.45 * strength * width, 0.0, 1.0, 0.0


def _translation_y(strength: float, width: int, height: int) -> Affine:
    return 1.0, 0.0, 0.0, 0.0, 1.0, 0.45 * strength * height


# Operations that move pixels.
GEOMETRIES: dict[str, Geometry] = {
    "Rotate": _rotation,
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateXRel": _translation_x,
    "TranslateYRel": _translation_y,
}


def _moved(geometry: Geometry) -> Callable[[Image, float], Image]:
    def operation(image: Image, strength: float) -> Image:
        return _affine(image, *geometry(strength, image.shape[1], image.shape[0]))

    return operation


# Name in timm -> operation(image, strength); strength is +-level / 10. Operations without a
# direction use its absolute value.
OPERATIONS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Invert": _invert,
    "Rotate": _moved(_rotation),
    "PosterizeIncreasing": _posterize,
    "SolarizeIncreasing": _solarize,
    "SolarizeAdd": _solarize_add,
    "ColorIncreasing": _color,
    "ContrastIncreasing": _contrast,
    "BrightnessIncreasing": _brightness,
    "SharpnessIncreasing": _sharpness,
    "ShearX": _moved(_shear_x),
    "ShearY": _moved(_shear_y),
    "TranslateXRel": _moved(_translation_x),
    "TranslateYRel": _moved(_translation_y),
}
