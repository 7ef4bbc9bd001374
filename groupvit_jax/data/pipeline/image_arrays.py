"""Images of training examples as arrays: alone, or with the superpixels of their patches."""

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from groupvit_jax.data.images import superpixels, transforms
from groupvit_jax.data.sources.mixture import MixedSource
from groupvit_jax.data.sources.samples import BrokenSampleError, Sample

# Called with an encoded image and the keyword `rng`.
ImageTransform = Callable[..., UInt8[np.ndarray, "S S 3"]]
# Called with a sample and the keyword `rng`; returns arrays of `typing.Batch`.
ImageArrays = Callable[..., dict[str, np.ndarray]]

_EXPECTED = "expected shards that launch.prepare --superpixels made"


def image_alone(
    sample: Sample, rng: np.random.Generator, *, transform: ImageTransform
) -> dict[str, np.ndarray]:
    """Return the transformed image."""
    return {"image": transform(sample["image"], rng=rng)}


def image_with_superpixels(
    sample: Sample,
    rng: np.random.Generator,
    *,
    size: int,
    augment: transforms.Augmentation,
    grid: int,
) -> dict[str, np.ndarray]:
    """Return the augmented image, and the superpixel of each of its patches.

    Args:
      sample: with superpixels.
      rng: source of all randomness; the image is that of `transforms.train_transform`.
      size: side of the image, in pixels.
      augment: how strongly.
      grid: patches in height and width.

    Raises:
      BrokenSampleError: it has no superpixels.
    """
    if "superpixels" not in sample:
        raise BrokenSampleError(f"no superpixels; {_EXPECTED}")
    image, view = transforms.viewed_transform(sample["image"], size, augment, rng)
    labels = superpixels.decode(sample["superpixels"])
    return {"image": image, "superpixels": superpixels.of_patches(labels, view, grid)}


def check_superpixels(source: MixedSource) -> None:
    """Raise ValueError if the first readable sample of a source has no superpixels."""
    for number in range(len(source.sizes)):
        first = source.start(number)
        try:
            sample = source[first]
        except BrokenSampleError:
            continue
        if "superpixels" not in sample:
            raise ValueError(
                f"config.loss.superpixel_weight: {source.locate(first)} has no superpixels, "
                f"{_EXPECTED}"
            )
