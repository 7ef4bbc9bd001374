"""Images with a class for every pixel, for segmentation sets."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import PIL.Image
from jaxtyping import Integer

from groupvit_jax.data.images.decode import MAX_PIXELS, decode, orient, read_header
from groupvit_jax.data.sources.tfds_builders import open_builder, skip_decoding
from groupvit_jax.typing import UInt8

IGNORED = 255  # class of pixels that are not evaluated
_NUM_IDS = 2**16
_GREY_MODES = ("1", "L", "P", "I", "I;16")  # one value per pixel; P: palette index


class MaskedImage(NamedTuple):
    """An RGB image and the class of each pixel (`IGNORED` for unlabelled ones)."""

    image: UInt8[np.ndarray, "H W 3"]
    mask: UInt8[np.ndarray, "H W"]


@runtime_checkable
class MaskedSource(Protocol):
    """Random access to images with masks."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int) -> MaskedImage:
        """Read one image and its mask; raise a ValueError that names the file if it can't."""

    def locate(self, index: int) -> str:
        """Describe the location of an image, for messages."""


class IdTable:
    """Maps the values stored in masks to classes."""

    def __init__(self, classes: Mapping[int, int]) -> None:
        """Take a mapping from stored value to class or `IGNORED`; other values are errors."""
        self._expected = f"one of {len(classes)} from {min(classes)} to {max(classes)}"
        # -1 for unknown values, hence not UInt8.
        self._classes = np.full(_NUM_IDS, -1, np.int16)
        self._classes[list(classes)] = list(classes.values())

    def __call__(self, mask: Integer[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
        """Return the class of each pixel; raise ValueError if a value is unknown."""
        known = (mask >= 0) & (mask < _NUM_IDS)
        # 0 in place of values that are no index of the table; they are reported below.
        classes = self._classes[np.where(known, mask, 0)]
        known &= classes >= 0
        if not known.all():
            unknown = sorted(set(mask[~known].tolist()))
            raise ValueError(f"values {unknown[:5]} found in the mask, expected {self._expected}")
        return classes.astype(np.uint8)


def class_ids(num_classes: int, first: int = 0) -> dict[int, int]:
    """Return the ids of masks without background: values from `first` are classes, 255 is ignored.

    Values below `first` are ignored too, the usual way to exclude the background.
    """
    ignored = dict.fromkeys([*range(first), IGNORED], IGNORED)
    return ignored | {first + i: i for i in range(num_classes)}


class Photo(NamedTuple):
    """A decoded, upright photo, with its stored height and width and its EXIF orientation."""

    image: UInt8[np.ndarray, "H W 3"]
    stored_size: tuple[int, int]
    orientation: int


def decode_photo(data: bytes, max_pixels: int = MAX_PIXELS) -> Photo:
    """Decode a photo; raise BrokenImageError, a ValueError, if it can't be or is too large."""
    header = read_header(data)
    size, orientation = (header.height, header.width), header.orientation
    if header.kind == "tiff":
        # Pillow turns a TIFF by itself and declares the turned size; its mask may not be turned.
        with PIL.Image.open(io.BytesIO(data), formats=["TIFF"]) as image:
            orientation = image.getexif().get(0x0112, 1)
        orientation = orientation if orientation in range(1, 9) else 1
        size = size[::-1] if orientation >= 5 else size
    return Photo(decode(data, max_pixels=max_pixels), size, orientation)


def read_mask(data: bytes, size: tuple[int, int]) -> Integer[np.ndarray, "H W"]:
    """Decode a greyscale or palette mask.

    Args:
      data: a PNG file.
      size: expected height and width, as stored or rotated by 90 degrees; checked before decoding.

    Raises:
      ValueError: it is not such an image.
    """
    try:
        with PIL.Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            found, mode = (image.height, image.width), image.mode
            usable = sorted(found) == sorted(size) and mode in _GREY_MODES
            values = np.array(image).astype(np.int32) if usable else None
    except Exception as error:  # Pillow raises whatever damaged chunks lead to
        raise ValueError(f"mask is no readable PNG ({error!r})") from error
    if sorted(found) != sorted(size):
        raise ValueError(sizes(found, size))
    if values is None:
        raise ValueError(
            f"mask with the channels {mode} found, expected one value for each pixel (a grey or "
            "palette PNG)"
        )
    return values


def pair(photo: Photo, mask: Integer[np.ndarray, "h w"], ids: IdTable | None) -> MaskedImage:
    """Bring a mask into the orientation of its photo.

    Masks of the published sets refer to the pixels as stored, whatever EXIF says, so a mask is
    turned upright together with its photo, also when its size fits both orientations. A mask that
    only fits the upright photo was drawn on the upright photo and stays.

    Args:
      photo: see `decode_photo`.
      mask: the stored values.
      ids: classes of the stored values; None keeps the values.

    Raises:
      ValueError: the mask doesn't fit or has an unknown value.
    """
    if mask.shape == photo.stored_size:
        mask = orient(mask[..., None], photo.orientation)[..., 0]
    elif mask.shape != photo.image.shape[:2]:
        raise ValueError(sizes(mask.shape, photo.image.shape[:2]))
    return MaskedImage(photo.image, mask.astype(np.uint8) if ids is None else ids(mask))


def sizes(mask: tuple[int, ...], photo: tuple[int, int]) -> str:
    """Return the message for a mask of another size than its photo's."""
    found, expected = (" x ".join(map(str, size)) for size in (mask, photo))
    return f"mask of {found} pixels (height x width) found, expected the photo's {expected}"


class TfdsMasks:
    """A prepared TFDS set with images and masks; TensorFlow need not be installed."""

    def __init__(
        self,
        name: str,
        split: str,
        data_dir: str,
        *,
        image: str = "image",
        mask: str = "mask",
        ids: Mapping[int, int] | None = None,
    ) -> None:
        """Open the set.

        Args:
          name: the set's name; not needed if `data_dir` is the folder of the set's version.
          split: e.g. "test" or "test[:100]".
          data_dir: the folder that holds TFDS sets, or the one of the set's version.
          image: name of the images' feature.
          mask: name of the masks' feature.
          ids: see `IdTable`; by default masks hold the classes.

        Raises:
          ValueError: the set can't be found or read, or lacks a feature.
        """
        where = f"segmentation set {name!r}, split {split!r} in {data_dir!r}"
        skip = {feature: skip_decoding() for feature in (image, mask)}
        try:
            builder = open_builder(name, data_dir)
            found = sorted(builder.info.features)
            if not {image, mask} <= set(found):
                raise ValueError(f"features {found} found, expected {image} and {mask}")
            self._examples = builder.as_data_source(split, decoders=skip)
        except (OSError, ValueError, AssertionError, NotImplementedError) as error:
            # TFDS may append a list of all sets that it knows.
            raise ValueError(f"{where}: {str(error).splitlines()[0]}") from error
        self._where, self._features = where, (image, mask)
        self._folder = Path(builder.data_dir)
        self._ids = None if ids is None else IdTable(ids)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> MaskedImage:
        example = self._examples[index]
        try:
            photo = decode_photo(example[self._features[0]])
            mask = read_mask(example[self._features[1]], photo.stored_size)
            return pair(photo, mask, self._ids)
        except ValueError as error:
            raise ValueError(f"{self.locate(index)}: {error}") from error

    def locate(self, index: int) -> str:
        """Return the set's name and the image's index."""
        return f"{self._where}, image {index}"

    def files(self) -> list[Path]:
        """Return all files of the set, which holds many images in each."""
        return sorted(file for file in self._folder.rglob("*") if file.is_file())
