"""A user's own images and masks; docs/evaluate.md has a table of the forms that are read.

    ROOT/
      classes.txt            one name per line; the first line is mask value 0
      images/anything.jpg    JPEG, PNG, WebP, BMP, GIF, TIFF or AVIF; folders below are searched
      masks/anything.png     in the same folders; indices, palettes or colours; 255 is ignored
      set.toml               optional: whatever differs from this (see `description`)

A class called `background`, in any spelling, is evaluated as the background class. All masks are
read once when the set is opened, so that a report of what was found comes before anything runs.
"""

import collections
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from groupvit_jax.data.eval_sets.coco_folder import open_coco_folder
from groupvit_jax.data.eval_sets.description import FILES, Description, read_description
from groupvit_jax.data.eval_sets.inventory import described
from groupvit_jax.data.eval_sets.mask_files import MaskFiles
from groupvit_jax.data.eval_sets.mask_values import (
    MASK_SUFFIXES,
    Scan,
    classes_of_values,
    read_values,
    scan,
)
from groupvit_jax.data.eval_sets.registry import SegmentationSet, register
from groupvit_jax.data.sources.labelled import IMAGE_SUFFIXES
from groupvit_jax.foreign import naming

# COCO's and Roboflow's files no deeper than here: the folder of all sets would be one, too.
_COCO = ("*.coco.json", "*/*.coco.json", "instances_*.json", "annotations/instances_*.json")
_NEEDS = ("images", "masks", "classes.txt", "labelmap.txt", *_COCO, *FILES)
_FEW = 3  # files named in a message


@register("folder")
def open_folder(data_dir: Path) -> SegmentationSet:
    """Open the set, and read its masks once.

    Args:
      data_dir: the set's folder, a folder with `folder` in it, or a description.

    Raises:
      ValueError: classes, masks or the description can't be used; says why.
      FileNotFoundError: photos, masks or classes are missing.
    """
    description = read_description(_place(data_dir))
    files, left_out = _photos(description)
    if not files:
        raise FileNotFoundError(f"folder: no image found in {description.images}")
    if description.masks.is_file():
        return open_coco_folder(description, files, left_out)
    assert description.classes is not None
    with naming(description.masks):
        photos, masks, lone = _pairs(description, files)
        left_out += lone
        found = scan(masks, description.classes.in_colours or None)
    with naming(description.file):
        table, notes = classes_of_values(found, description.classes, description.ignored)
    if found.unreadable:
        count, first = len(found.unreadable), found.unreadable[0]
        notes.append(f"{count} of {len(masks)} masks can't be read, e.g. {first}")
    ids, read = _reading(found, table)
    source = MaskFiles(photos, masks, ids, read, description.max_pixels)
    return described(description, description.classes, source, found, table, notes, left_out)


def _place(data_dir: Path) -> Path:
    """Return the description or the set's folder."""
    places = (data_dir,) if data_dir.is_file() else (data_dir / "folder", data_dir)
    for place in places:
        if place.is_file() or any(any(place.glob(need)) for need in _NEEDS if place.is_dir()):
            return place
    raise FileNotFoundError(
        f"folder: {data_dir} not found, or without images, masks and classes.txt (or COCO's "
        "instances.json) in it or in its folder `folder`; see docs/evaluate.md"
    )


def _photos(description: Description) -> tuple[list[Path], list[Path]]:
    """Return the photos in all folders below, and the files that are none."""
    same = description.masks == description.images
    below = (f for f in sorted(description.images.rglob("*")) if f.is_file())
    files = [f for f in below if not f.name.startswith(".") and f.name != "Thumbs.db"]
    photos: list[Path] = []
    others: list[Path] = []
    for file in files:
        if same and description.mask_suffix and file.stem.endswith(description.mask_suffix):
            continue  # a mask beside its photo
        named = file.stem.endswith(description.image_suffix)
        (photos if named and file.suffix.lower() in IMAGE_SUFFIXES else others).append(file)
    if same:
        others = [file for file in others if file.suffix.lower() not in MASK_SUFFIXES]
    return photos, others


def _pairs(
    description: Description, photos: Sequence[Path]
) -> tuple[list[Path], list[Path], list[Path]]:
    """Return photos, the mask of each, and masks without a photo."""
    masks: dict[Path, Path] = {}
    for file in sorted(description.masks.rglob("*")):
        if file.suffix.lower() in MASK_SUFFIXES and file.is_file():
            key = file.relative_to(description.masks).with_suffix("")
            if key in masks:
                raise ValueError(f"{masks[key].name} and {file.name} found, expected one mask")
            masks[key] = file
    stems = [_stem(photo, description) for photo in photos]
    times = collections.Counter(stems)
    if twice := [p for p, stem in zip(photos, stems, strict=True) if times[stem] > 1]:
        names = ", ".join(photo.name for photo in twice[:_FEW])
        raise ValueError(f"{names}: several photos of one name found, expected one for each mask")
    suffix = description.mask_suffix
    if suffix is None:
        suffix = _common_suffix(stems, masks)
    wanted = [stem.with_name(stem.name + suffix) for stem in stems]
    if missing := [p for p, key in zip(photos, wanted, strict=True) if key not in masks]:
        names = ", ".join(str(p.relative_to(description.images)) for p in missing[:_FEW])
        raise FileNotFoundError(
            f"{len(missing)} of {len(photos)} photos without a mask found ({names}"
            f"{', ...' if len(missing) > _FEW else ''}); expected {wanted[0].name}.png and so on, "
            "in the same folders as the photos, or mask_suffix in a description"
        )
    lone = [masks[key] for key in masks if key not in set(wanted)]
    return list(photos), [masks[key] for key in wanted], lone if suffix is not None else []


def _stem(photo: Path, description: Description) -> Path:
    stem = photo.relative_to(description.images).with_suffix("")
    return stem.with_name(stem.name.removesuffix(description.image_suffix))


def _common_suffix(stems: Sequence[Path], masks: dict[Path, Path]) -> str:
    """Return what all masks' names have behind their photos', e.g. `_mask`; "" if nothing fits."""
    if not stems or all(stem in masks for stem in stems):
        return ""
    first = stems[0]
    candidates = [
        key.name.removeprefix(first.name)
        for key in masks
        if key.parent == first.parent and key.name.startswith(first.name)
    ]
    # The first photo suggests suffixes; one that all photos share is the set's.
    fitting = [c for c in candidates if all(s.with_name(s.name + c) in masks for s in stems)]
    return fitting[0] if len(fitting) == 1 else ""


def _reading(found: Scan, table: dict[int, int]):
    """Return ids and reader for `MaskFiles`; a colour is read as its number in the table."""
    if not found.in_colours:
        return table, read_values
    colours = np.array(sorted(table), np.int32)
    ids = {i: table[colour] for i, colour in enumerate(colours.tolist())}
    return ids, functools.partial(_read_colours, colours)


def _read_colours(
    colours: np.ndarray, path: Path, size: tuple[int, int]
) -> Integer[np.ndarray, "H W"]:
    values = read_values(path, size, in_colours=True)
    places = np.searchsorted(colours, values).clip(max=len(colours) - 1)
    # A mask that has changed since the set was opened; -1 is no class, so that it is refused.
    return np.where(colours[places] == values, places, -1)
