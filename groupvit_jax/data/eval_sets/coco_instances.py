"""Draws the instances of COCO's JSON as class masks."""

import collections
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask

from groupvit_jax.data.eval_sets.mask_files import below, naming
from groupvit_jax.data.sources.masks import IdTable, MaskedImage, decode_photo, pair
from groupvit_jax.typing import Bool, Int

_FARTHEST = 1e5  # largest coordinate of a point, in pixels


class InstanceMasks:
    """A masked source of photos with the instances of COCO's JSON drawn into one mask."""

    def __init__(self, annotations: Path, photos: Path, ids: Mapping[int, int]) -> None:
        """Parses the JSON.

        Args:
          annotations: instances_*.json; images without instances are included.
          photos: the folder of the images.
          ids: category id -> class; 0 stands for pixels without an instance.

        Raises:
          ValueError: it is not COCO's JSON.
        """
        self._file, self._folder, self._ids = annotations, photos, IdTable(ids)
        self._instances: dict[int, list[dict[str, Any]]] = collections.defaultdict(list)
        try:
            content = json.loads(annotations.read_bytes())
            self._images = [(image["id"], image["file_name"]) for image in content["images"]]
            for instance in content["annotations"]:
                fields = {key: instance[key] for key in ("category_id", "segmentation", "iscrowd")}
                self._instances[instance["image_id"]].append(fields)
        except (KeyError, TypeError, ValueError) as error:
            expected = "expected COCO instances (images and annotations)"
            raise ValueError(f"{annotations}: {expected}, got {error!r}") from error

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> MaskedImage:
        image_id, name = self._images[index]
        photo_file = below(self._folder, name, str(self._file))
        with naming(photo_file):
            photo = decode_photo(photo_file.read_bytes())
        with naming(f"{self._file}, image {image_id}"):
            instances = self._instances.get(image_id, [])
            return pair(photo, draw_instances(instances, photo.stored_size), self._ids)

    def locate(self, index: int) -> str:
        """Returns the photo's path."""
        return str(self._folder / self._images[index][1])


def draw_instances(
    instances: Sequence[Mapping[str, Any]], size: tuple[int, int]
) -> Int[np.ndarray, "H W"]:
    """Returns the category id of each pixel; 0 if no instance covers it.

    Of overlapping instances, the smaller one is in front: an object on another, such as a cup on a
    table, is usually smaller, and the order in COCO's file carries no information. Crowd regions
    are annotated coarsely, so they are behind all single instances.

    Args:
      instances: each with `category_id`, `iscrowd`, and `segmentation`: polygons or run lengths.
      size: the photo's height and width as stored.

    Raises:
      ValueError: the segmentation of an instance is invalid.
    """
    drawn = [(_decode(instance["segmentation"], size), instance) for instance in instances]
    drawn.sort(key=lambda pair: (not pair[1]["iscrowd"], -int(pair[0].sum())))
    mask = np.zeros(size, np.int32)
    for inside, instance in drawn:
        mask[inside] = instance["category_id"]
    return mask


def _decode(shape: Any, size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """Fills polygons [[x, y, x, y, ...], ...] or decodes {"counts", "size"}."""
    if isinstance(shape, dict):
        if tuple(shape.get("size", ())) != size:
            found = f"run lengths of size {shape.get('size')} found"
            raise ValueError(f"{found}, expected the photo's {list(size)} (height, width)")
        encoded = shape if isinstance(shape["counts"], str) else _encode(shape, size)
        return pycocotools.mask.decode(encoded).astype(bool)
    if not (isinstance(shape, list) and all(map(_is_polygon, shape))):
        raise ValueError(f"segmentation {str(shape)[:60]} found, expected polygons or run lengths")
    if not shape:
        return np.zeros(size, bool)
    merged = pycocotools.mask.merge(pycocotools.mask.frPyObjects(shape, *size))
    return pycocotools.mask.decode(merged).astype(bool)


def _is_polygon(points: Any) -> bool:
    """Validates a polygon: pycocotools writes out of bounds for other numbers."""
    return (
        isinstance(points, list)
        and len(points) >= 6
        and len(points) % 2 == 0
        and all(isinstance(x, int | float) and abs(x) <= _FARTHEST for x in points)
    )


def _encode(shape: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Compresses plain run lengths after checking their sum, which pycocotools doesn't."""
    counts = shape["counts"]
    if sum(counts) != size[0] * size[1] or min(counts) < 0:
        raise ValueError(
            f"run lengths of {sum(counts)} pixels found, expected {size[0]} x {size[1]}"
        )
    return pycocotools.mask.frPyObjects(shape, *size)
