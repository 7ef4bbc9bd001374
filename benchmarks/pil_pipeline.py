"""The image pipeline most people train with today: PIL, with timm's RandAugment on PIL operations.

It draws from its generator in the order of `data.images.transforms.train_transform`: with the same
seed both take the same crop and the same operations, so their outputs can be compared.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from groupvit_jax.data.images.augment import FILL
from groupvit_jax.data.images.transforms import Augmentation, sample_crop

__all__ = ["OPERATIONS", "decode", "decode_and_crop", "rand_augment", "train_transform"]


def decode(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def decode_and_crop(
    data: bytes, size: int, augment: Augmentation, rng: np.random.Generator
) -> Image.Image:
    image = decode(data)
    area, ratio = (augment.min_area, augment.max_area), (augment.min_ratio, augment.max_ratio)
    top, left, height, width = sample_crop(image.height, image.width, rng, area=area, ratio=ratio)
    box = (left, top, left + width, top + height)
    return image.crop(box).resize((size, size), Image.Resampling.BILINEAR)


def rand_augment(
    image: Image.Image, augment: Augmentation, rng: np.random.Generator
) -> Image.Image:
    names = tuple(OPERATIONS)
    for _ in range(augment.num_ops):
        operation = OPERATIONS[names[rng.integers(len(names))]]
        if rng.random() < 0.5:
            level = np.clip(rng.normal(augment.magnitude, augment.magnitude_std), 0, 10)
            sign = 1 if rng.random() < 0.5 else -1
            image = operation(image, sign * level / 10)
    return image


def train_transform(
    data: bytes, size: int, augment: Augmentation, rng: np.random.Generator
) -> np.ndarray:
    image = decode_and_crop(data, size, augment, rng)
    if rng.random() < augment.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(rand_augment(image, augment, rng))


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=FILL
    )


def _rotate(image: Image.Image, strength: float) -> Image.Image:
    return image.rotate(30 * strength, Image.Resampling.BILINEAR, fillcolor=FILL)


def _solarize_add(image: Image.Image, strength: float) -> Image.Image:
    added = [min(255, i + int(abs(strength) * 110)) if i < 128 else i for i in range(256)]
    return image.point(added * 3)


def _enhance(kind: type) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, strength: kind(image).enhance(max(1 + 0.9 * strength, 0.1))


# Name in timm -> operation(image, strength), strength +-level / 10, as
# `groupvit_jax.data.images.augment.OPERATIONS`.
OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Invert": lambda image, _: ImageOps.invert(image),
    "Rotate": _rotate,
    "PosterizeIncreasing": lambda image, s: ImageOps.posterize(image, max(4 - int(abs(s) * 4), 1)),
    "SolarizeIncreasing": lambda image, s: ImageOps.solarize(image, 256 - int(abs(s) * 256)),
    "SolarizeAdd": _solarize_add,
    "ColorIncreasing": _enhance(ImageEnhance.Color),
    "ContrastIncreasing": _enhance(ImageEnhance.Contrast),
    "BrightnessIncreasing": _enhance(ImageEnhance.Brightness),
    "SharpnessIncreasing": _enhance(ImageEnhance.Sharpness),
    "ShearX": lambda image, s: _affine(image, 1, 0.3 * s, 0, 0, 1, 0),
    "ShearY": lambda image, s: _affine(image, 1, 0, 0, 0.3 * s, 1, 0),
    "TranslateXRel": lambda image, s: _affine(image, 1, 0, 0.45 * s * image.width, 0, 1, 0),
    "TranslateYRel": lambda image, s: _affine(image, 1, 0, 0, 0, 1, 0.45 * s * image.height),
}
