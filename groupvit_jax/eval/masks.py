"""Images with a class for every pixel, for segmentation benchmarks."""

import os
from typing import NamedTuple, Protocol, runtime_checkable

import cv2
import numpy as np
import tensorflow_datasets as tfds

from groupvit_jax.data.decode import decode
from groupvit_jax.typing import UInt8


class MaskedImage(NamedTuple):
    """An RGB image and the class of each of its pixels (`metrics.IGNORED` doesn't count)."""

    image: UInt8[np.ndarray, "H W 3"]
    mask: UInt8[np.ndarray, "H W"]


@runtime_checkable
class MaskedSource(Protocol):
    """Random access to images with masks."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int) -> MaskedImage:
        """Reads one image and its mask."""


class TfdsMasks:
    """A prepared TFDS set with features `image` and `mask`; TensorFlow need not be installed."""

    def __init__(self, name: str, split: str, data_dir: str) -> None:
        """Opens the set.

        Args:
          name: the set's name; not needed if `data_dir` is the folder of the set's version.
          split: e.g. "test" or "test[:100]".
          data_dir: the folder that holds TFDS sets, or the one of the set's version.

        Raises:
          ValueError: the set can't be found or read, or lacks a feature.
        """
        where = f"segmentation set {name!r}, split {split!r} in {data_dir!r}"
        skip = {"image": tfds.decode.SkipDecoding(), "mask": tfds.decode.SkipDecoding()}
        try:
            if os.path.exists(os.path.join(data_dir, "features.json")):
                builder = tfds.builder_from_directory(data_dir)
            else:
                builder = tfds.builder(name, data_dir=data_dir or None)
            found = sorted(builder.info.features)
            if not {"image", "mask"} <= set(found):
                raise ValueError(f"features {found} found, expected image and mask")
            self._examples = builder.as_data_source(split, decoders=skip)
        except (OSError, ValueError, AssertionError, NotImplementedError) as error:
            # TFDS may add a list of all sets that it knows.
            raise ValueError(f"{where}: {str(error).splitlines()[0]}") from error
        self._where = where

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> MaskedImage:
        example = self._examples[index]
        image = decode(example["image"])
        mask = cv2.imdecode(np.frombuffer(example["mask"], np.uint8), cv2.IMREAD_UNCHANGED)
        if mask is None or mask.shape != image.shape[:2]:
            shape = None if mask is None else mask.shape
            raise ValueError(
                f"{self._where}, image {index}: mask of shape {shape} found, expected one value "
                f"for each of the image's {image.shape[0]} x {image.shape[1]} pixels"
            )
        return MaskedImage(image, mask)
