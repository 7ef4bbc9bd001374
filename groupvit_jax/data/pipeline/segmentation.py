"""Training input with masks: images with a class for every pixel, scaled, cropped and flipped.

Order and randomness follow `data.pipeline.contrastive`: example p is a pure function of (seed, p).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from groupvit_jax.data.eval_sets import SegmentationSet, open_benchmark
from groupvit_jax.data.images.augment import FILL, OPERATIONS
from groupvit_jax.data.images.transforms import resize
from groupvit_jax.data.pipeline.contrastive import TrainExamples
from groupvit_jax.data.sources.masks import (
    IGNORED,
    MaskedImage,
    MaskedSource,
    TfdsMasks,
    class_ids,
)
from groupvit_jax.data.sources.mixture import open_mixture
from groupvit_jax.data.sources.samples import BrokenSampleError

# Fields of `config.data.sources.NAME` by its kind.
FIELDS = {
    "benchmark": ("benchmark", "split", "data_dir", "weight"),
    "tfds": ("name", "split", "data_dir", "image", "mask", "weight"),
}
_COLOURS = ("BrightnessIncreasing", "ContrastIncreasing", "ColorIncreasing")


class MaskedSamples:
    """A masked source for training, which reports unreadable images as broken samples."""

    def __init__(self, source: MaskedSource) -> None:
        """Wrap a source of images with masks."""
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Any:
        """Return a `MaskedImage`; raise BrokenSampleError if it can't be read."""
        try:
            return self._source[index]
        except ValueError as error:
            raise BrokenSampleError(str(error)) from error

    def locate(self, index: int) -> str:
        """Describe the location of an image, for messages."""
        return self._source.locate(index)


def open_masked_source(
    name: str,
    fields: Mapping[str, Any],
    class_names: Sequence[str],
    local_copy: Callable[[str], Path] = Path,
) -> MaskedSource:
    """Open the set `config.data.sources.NAME` of the segmentation task.

    Args:
      name: NAME.
      fields: `kind` and the fields of that kind: "benchmark" has `benchmark` (by default NAME),
        `split` ("train") and `data_dir`, see docs/benchmarks.md; "tfds" has `name`, `split`
        ("train"), `data_dir` and the features `image` and `mask`. `weight` is the mixture's.
      class_names: expected names of the mask values, including the background.
      local_copy: returns a local path of the `data_dir` of a benchmark, which may be a URL.

    Raises:
      ValueError: an unknown kind or field, other classes, or a set that can't be read.
      FileNotFoundError: the set's files aren't there.
    """
    field = f"config.data.sources.{name}"
    kind = fields.get("kind")
    if kind not in FIELDS:
        raise ValueError(f"{field}.kind={kind!r}: expected one of {sorted(FIELDS)}")
    if unknown := sorted(set(fields) - {"kind", *FIELDS[kind]}):
        raise ValueError(f"{field}.{unknown[0]}: unknown; {kind} has {sorted(FIELDS[kind])}")
    options = {key: value for key, value in fields.items() if key not in ("kind", "weight")}
    split, data_dir = options.pop("split", "train"), options.pop("data_dir", ".")
    if kind == "tfds":
        ids = class_ids(len(class_names))
        return TfdsMasks(options.pop("name", ""), split, data_dir, ids=ids, **options)
    try:
        place = local_copy(data_dir)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{field}.data_dir={data_dir}: {error}") from error
    opened = open_benchmark(options.get("benchmark", name), place, split)
    if not isinstance(opened, SegmentationSet):
        raise ValueError(f"{field}: a set without masks found, expected one to segment")
    try:
        opened.check_names(class_names, "config.segmentation.class_names")
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error
    return opened.source


@dataclasses.dataclass(frozen=True)
class MaskedAugmentation:
    """Augmentation of images with masks; the fields of `config.segmentation`.

    Attributes:
      min_scale: smallest length of the image's shorter side, as a multiple of the crop's.
      max_scale: largest.
      flip: probability of a horizontal flip.
      jitter: brightness, contrast and saturation change by up to this share of 90 %.
    """

    min_scale: float = 0.5
    max_scale: float = 2.0
    flip: float = 0.5
    jitter: float = 0.4


def make_masked_examples(
    sources: Mapping[str, Mapping[str, Any]],
    class_names: Sequence[str],
    *,
    augment: MaskedAugmentation,
    image_size: int,
    seed: int,
    local_copy: Callable[[str], Path] = Path,
) -> TrainExamples:
    """Open the sources and return the sequence of training examples with masks.

    Args:
      sources: `config.data.sources`, the fields of each source by its name.
      class_names: the classes of the masks' values from 0 on.
      augment: how strongly images are augmented.
      image_size: side of the training images, in pixels.
      seed: of the examples' order and randomness.
      local_copy: see `open_masked_source`.

    Raises:
      ValueError, FileNotFoundError: see `open_masked_source`.
    """
    transform = functools.partial(transform_masked, size=image_size, augment=augment)

    def open_source(name: str, fields: Mapping[str, Any]) -> MaskedSamples:
        return MaskedSamples(open_masked_source(name, fields, class_names, local_copy))

    source, order = open_mixture(sources, seed, open_source)
    return TrainExamples(source, order, seed, transform)


def transform_masked(
    sample: MaskedImage, rng: np.random.Generator, *, size: int, augment: MaskedAugmentation
) -> dict[str, np.ndarray]:
    """Scale, crop and flip an image together with its mask, and jitter the image's colours.

    The shorter side is resized to `size` times a factor, uniform from `min_scale` to `max_scale`,
    and a square is cropped at a random position. If the image is smaller than the square, it is
    padded on the right and below with ImageNet's mean and unlabelled pixels.

    Args:
      sample: image and mask.
      rng: source of all randomness.
      size: side of the result, S.
      augment: how strongly.

    Returns:
      {"image": UInt8 "S S 3", "mask": UInt8 "S S"}.
    """
    H, W = sample.mask.shape
    scale = rng.uniform(augment.min_scale, augment.max_scale) * size / min(H, W)
    h, w = max(1, round(H * scale)), max(1, round(W * scale))
    top, left = (int(rng.integers(max(length - size, 0) + 1)) for length in (h, w))
    part = np.s_[top : top + size, left : left + size]
    image = resize(sample.image, h, w)[part]
    # Class numbers can't be averaged; plain INTER_NEAREST would shift them against the image.
    mask = cv2.resize(sample.mask, (w, h), interpolation=cv2.INTER_NEAREST_EXACT)[part]
    if rng.random() < augment.flip:
        image, mask = image[:, ::-1], mask[:, ::-1]
    image = np.ascontiguousarray(image)
    # Before padding, so that the border keeps ImageNet's mean.
    for name in _COLOURS:
        image = OPERATIONS[name](image, rng.uniform(-augment.jitter, augment.jitter))
    rows, columns = size - image.shape[0], size - image.shape[1]
    border = (0, rows, 0, columns, cv2.BORDER_CONSTANT)
    mask = np.ascontiguousarray(mask)
    return {
        "image": cv2.copyMakeBorder(image, *border, value=FILL),
        "mask": cv2.copyMakeBorder(mask, *border, value=IGNORED),
    }
