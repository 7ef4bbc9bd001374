"""Draws the instances of COCO's JSON as class masks."""

import collections
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask

from groupvit_jax.data.eval_sets.mask_files import below
from groupvit_jax.data.images.decode import MAX_PIXELS
from groupvit_jax.data.sources.masks import IdTable, MaskedImage, decode_photo, pair
from groupvit_jax.foreign import naming
from groupvit_jax.typing import Bool, Int

_FARTHEST = 1e5  # largest coordinate of a point, in pixels
# Pixels along the polygons of an instance; pycocotools needs 100 bytes for each. COCO's longest
# outline has a few thousand.
_LONGEST_OUTLINE = 2**20


class InstanceMasks:
    """A masked source of photos with the instances of COCO's JSON drawn into one mask."""

    def __init__(
        self,
        annotations: Path,
        photos: Path,
        ids: Mapping[int, int],
        *,
        first: int = 0,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Parse the JSON.

        Args:
          annotations: instances_*.json; images without instances are included.
          photos: the folder of the images.
          ids: category id, plus `first`, -> class; 0 stands for pixels without an instance.
          first: added to all category ids; 1 where a category may have the id 0.
          max_pixels: larger photos are refused.

        Raises:
          ValueError: it is not COCO's JSON.
        """
        self._file, self._folder, self._ids = annotations, photos, IdTable(ids)
        self._max_pixels = max_pixels
        self._instances: dict[int, list[dict[str, Any]]] = collections.defaultdict(list)
        try:
            content = json.loads(annotations.read_bytes())
            self._images = [(image["id"], image["file_name"]) for image in content["images"]]
            for instance in content["annotations"]:
                # Tools other than COCO's own often leave out iscrowd.
                fields = {"category_id": instance["category_id"] + first}
                fields |= {"segmentation": instance["segmentation"]}
                fields |= {"iscrowd": instance.get("iscrowd", 0)}
                self._instances[instance["image_id"]].append(fields)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            expected = "expected COCO instances (images and annotations)"
            raise ValueError(f"{annotations}: {expected}, got {error!r}") from error

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> MaskedImage:
        image_id, name = self._images[index]
        photo_file = below(self._folder, name, str(self._file))
        with naming(photo_file):
            photo = decode_photo(photo_file.read_bytes(), self._max_pixels)
        mask = self.draw(index, photo.stored_size)
        with naming(f"{self._file}, image {image_id}"):
            return pair(photo, mask, self._ids)

    def locate(self, index: int) -> str:
        """Return the photo's path."""
        return str(self._folder / self._images[index][1])

    def files(self) -> list[Path]:
        """Return all files that the set consists of."""
        return [self._file, *(self._folder / name for _, name in self._images)]

    def draw(self, index: int, size: tuple[int, int]) -> Int[np.ndarray, "H W"]:
        """Return the category id, plus `first`, of each pixel of an image; its photo is not read.

        Raises:
          ValueError: the segmentation of an instance is invalid.
        """
        image_id, _ = self._images[index]
        with naming(f"{self._file}, image {image_id}"):
            return draw_instances(self._instances.get(image_id, []), size)


def draw_instances(
    instances: Sequence[Mapping[str, Any]], size: tuple[int, int]
) -> Int[np.ndarray, "H W"]:
    """Return the category id of each pixel; 0 if no instance covers it.

    Of overlapping instances, the smaller one is in front: an object on another, such as a cup on a
    table, is usually smaller, and the order in COCO's file carries no information. Crowd regions
    are annotated coarsely, so they are behind all single instances.

    Args:
      instances: each with `category_id`, `iscrowd`, and `segmentation`: polygons or run lengths.
      size: the photo's height and width as stored.

    Raises:
      ValueError: the segmentation of an instance is invalid.
    """
    # Encoded, because the pixels of all instances together may take gigabytes.
    drawn = [(_run_lengths(instance["segmentation"], size), instance) for instance in instances]
    areas = [int(pycocotools.mask.area(encoded)) if encoded else 0 for encoded, _ in drawn]
    # From back to front: what is painted later covers.
    order = sorted(range(len(drawn)), key=lambda i: (not drawn[i][1]["iscrowd"], -areas[i]))
    mask = np.zeros(size, np.int32)
    for encoded, instance in (drawn[i] for i in order):
        if encoded:
            mask[_decode(encoded)] = instance["category_id"]
    return mask


def _decode(encoded: dict[str, Any]) -> Bool[np.ndarray, "H W"]:
    return pycocotools.mask.decode(encoded).astype(bool)


def _run_lengths(shape: Any, size: tuple[int, int]) -> dict[str, Any] | None:
    """Encode polygons [[x, y, x, y, ...], ...] or plain run lengths; None for no polygon."""
    if isinstance(shape, dict):
        if tuple(shape.get("size", ())) != size:
            found = f"run lengths of size {shape.get('size')} found"
            raise ValueError(f"{found}, expected the photo's {list(size)} (height, width)")
        # A string is compressed already.
        return shape if isinstance(shape["counts"], str) else _encode(shape, size)
    if not (isinstance(shape, list) and all(map(_is_polygon, shape))):
        raise ValueError(f"segmentation {str(shape)[:60]} found, expected polygons or run lengths")
    if not shape:
        return None
    if (outline := sum(map(_outline, shape))) > _LONGEST_OUTLINE:
        raise ValueError(f"polygons of {outline:,} pixels, more than {_LONGEST_OUTLINE:,}")
    # One instance may have several polygons, where something hides its middle.
    return pycocotools.mask.merge(pycocotools.mask.frPyObjects(shape, *size))


def _outline(points: Sequence[Any]) -> int:
    """Return how many pixels the sides of a polygon have."""
    sides = np.abs(np.diff(np.reshape(points, (-1, 2)), axis=0, append=[points[:2]]))
    # A line has as many pixels as its longer extent.
    return int(sides.max(axis=1).sum())


def _is_polygon(points: Any) -> bool:
    """Validate a polygon: pycocotools writes out of bounds for other numbers."""
    return (
        isinstance(points, list)
        and len(points) >= 6
        and len(points) % 2 == 0
        and all(isinstance(x, int | float) and abs(x) <= _FARTHEST for x in points)
    )


def _encode(shape: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Compress plain run lengths after checking their sum, which pycocotools doesn't."""
    counts = shape["counts"]
    if sum(counts) != size[0] * size[1] or min(counts) < 0:
        raise ValueError(
            f"run lengths of {sum(counts)} pixels found, expected {size[0]} x {size[1]}"
        )
    return pycocotools.mask.frPyObjects(shape, *size)
