"""Preprocessing of uint8 images on the accelerator: normalisation and random erasing.

Images cross to the device as uint8, a quarter of the bytes of float32.
"""

import math

import jax
import jax.numpy as jnp

from groupvit_jax.typing import Array, Bool, Float, Key, UInt8

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "normalize", "random_crops", "random_erasing"]

# Of RGB in 0-1, as the published models are trained and evaluated with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_ATTEMPTS = 10


def normalize(images: UInt8[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
    """Map 0-255 to 0-1 and then to ImageNet's zero mean and unit deviation, float32."""
    # Statistics in 0-255, so that the pixels need no pass of their own to 0-1.
    mean = 255.0 * jnp.asarray(IMAGENET_MEAN, jnp.float32)
    std = 255.0 * jnp.asarray(IMAGENET_STD, jnp.float32)
    return (images.astype(jnp.float32) - mean) / std


def random_erasing(
    keys: Key[Array, "B"],
    images: Float[Array, "B H W 3"],
    probability: float,
    *,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> Float[Array, "B H W 3"]:
    """Replace one box of some images by noise (arXiv 1708.04896, timm's mode "pixel").

    Each image draws up to ten boxes and erases the first that is smaller than the image in both
    directions. The result doesn't depend on how the batch is sharded or divided.

    Args:
      keys: one key an image, so that no image depends on the others.
      images: normalised, so that N(0, 1) noise has their mean and deviation.
      probability: that an image is erased.
      area: range of the box's area over the image's, drawn uniformly.
      aspect: range of height / width, drawn log-uniformly.

    Returns:
      The images, of the same type.
    """
    if probability == 0:
        return images
    height, width, _ = shape = images.shape[1:]

    def draw(key: Key[Array, ""]) -> tuple[Float[Array, "23"], Float[Array, "H W 3"]]:
        box_key, noise_key = jax.random.split(key)
        draws = jax.random.uniform(box_key, (3 + 2 * _ATTEMPTS,))  # one call: it compiles slowly
        return draws, jax.random.normal(noise_key, shape, images.dtype)

    draws, noise = jax.vmap(draw)(keys)
    erased = _erased_pixels(draws, (height, width), probability, area, aspect)
    return jnp.where(erased[..., None], noise, images)


def random_crops(
    keys: Key[Array, "B"], images: Float[Array, "B H W 3"], area: tuple[float, float]
) -> Float[Array, "B H W 3"]:
    """Return a random crop of each image, of its proportions and resized to its size (bilinear).

    Args:
      keys: one key an image, so that no image depends on the others.
      images: of any range.
      area: range of the crop's area over the image's, drawn uniformly.
    """
    shape = images.shape[1:]
    size = jnp.asarray(shape[:2], jnp.float32)

    def crop(key: Key[Array, ""], image: Float[Array, "H W 3"]) -> Float[Array, "H W 3"]:
        draws = jax.random.uniform(key, (3,))
        # Of the same proportions, so a side's share is the root of the area's.
        side = jnp.sqrt(area[0] + (area[1] - area[0]) * draws[0])
        corner = draws[1:] * (1 - side) * size
        # An output pixel is at `input * scale + translation`: this maps the crop's corner to 0.
        scale = jnp.full(2, 1 / side)
        return jax.image.scale_and_translate(
            image, shape, (0, 1), scale, -corner * scale, "linear", antialias=False
        )

    return jax.vmap(crop)(keys, images)


def _erased_pixels(
    draws: Float[Array, "B 23"],
    shape: tuple[int, int],
    probability: float,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> Bool[Array, "B H W"]:
    height, width = shape
    # In order: whether to erase, top, left, then area and aspect of each attempt in turn.
    applied, top, left = draws[:, :1], draws[:, 1:2], draws[:, 2:3]
    # Pixels of each attempt's box, [B, 10].
    target = height * width * (area[0] + (area[1] - area[0]) * draws[:, 3::2])
    log_aspect = math.log(aspect[0]), math.log(aspect[1])
    ratio = jnp.exp(log_aspect[0] + (log_aspect[1] - log_aspect[0]) * draws[:, 4::2])
    rows, columns = jnp.rint(jnp.sqrt(target * ratio)), jnp.rint(jnp.sqrt(target / ratio))
    fits = (rows < height) & (columns < width)
    # If none fits, argmax gives the first attempt, and `fits.any` below discards it.
    first = jnp.argmax(fits, axis=1)[:, None]
    rows = jnp.take_along_axis(rows, first, axis=1)
    columns = jnp.take_along_axis(columns, first, axis=1)
    # Uniform over the `height - rows + 1` rows at which the box can begin.
    top = jnp.floor(top * (height - rows + 1))
    left = jnp.floor(left * (width - columns + 1))
    y, x = jnp.arange(height), jnp.arange(width)
    inside_rows = (y >= top) & (y < top + rows)
    inside_columns = (x >= left) & (x < left + columns)
    erased = (applied < probability) & fits.any(axis=1, keepdims=True)
    return erased[..., None] & inside_rows[:, :, None] & inside_columns[:, None, :]
