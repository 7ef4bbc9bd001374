"""A set of one's own whose labels are a JSON of COCO: instances of categories on photos."""

import collections
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from groupvit_jax.data.eval_sets.class_list import ClassList, make_class_list
from groupvit_jax.data.eval_sets.coco_instances import InstanceMasks
from groupvit_jax.data.eval_sets.description import Description
from groupvit_jax.data.eval_sets.inventory import described
from groupvit_jax.data.eval_sets.mask_values import Scan
from groupvit_jax.data.eval_sets.registry import SegmentationSet
from groupvit_jax.data.sources.masks import IGNORED
from groupvit_jax.data.text.names import key_of, synonyms
from groupvit_jax.foreign import naming

_FIRST = 1  # added to ids, of which some tools give 0 to a category; 0 is no instance


def open_coco_folder(
    description: Description, photos: Sequence[Path], left_out: Sequence[Path]
) -> SegmentationSet:
    """Open the set; pixels without an instance are background unless the description says not.

    Args:
      description: `masks` is the JSON.
      photos: files in the folder of the photos.
      left_out: the other files there.

    Raises:
      ValueError: the JSON isn't COCO's, or a class of the list has no category.
      FileNotFoundError: a photo of the JSON is missing.
    """
    file = description.masks
    with naming(file):
        content = json.loads(file.read_bytes())
        categories = {int(c["id"]) + _FIRST: str(c["name"]) for c in content["categories"]}
        sizes = [(int(image["height"]), int(image["width"])) for image in content["images"]]
    classes = _classes(description, categories)
    other = 0 if classes.has_background else IGNORED
    ids = dict.fromkeys([0, *categories], other)
    ids |= {key: class_ for key, class_ in classes.classes.items() if isinstance(key, int)}
    source = InstanceMasks(
        file, description.images, ids, first=_FIRST, max_pixels=description.max_pixels
    )
    named = {Path(source.locate(i)) for i in range(len(source))}
    if missing := sorted(path for path in named if not path.is_file()):
        raise FileNotFoundError(
            f"{file}: {len(missing)} of {len(named)} photos not found in {description.images} "
            f"({missing[0].name})"
        )
    found = _scan(source, sizes)
    if all(ids.get(value) in (other, IGNORED) for value in found.pixels):
        raise ValueError(f"{file}: nothing is labelled: no instance of a class found")
    lone = [other for other in left_out if other not in (file, description.file)]
    lone += [photo for photo in photos if photo not in named]
    notes = [f"instances drawn from {file.name}, the smaller ones in front"]
    return described(description, classes, source, found, ids, notes, lone)


def _classes(description: Description, categories: dict[int, str]) -> ClassList:
    """Return the classes with category ids as values: all categories, or those of a list."""
    where, listed = str(description.masks), description.classes
    if listed is None:
        entries = [(name, id_) for id_, name in sorted(categories.items())]
        if description.background is not False:
            # Roboflow's first category is a heading of this kind; it has no instances.
            entries = [(n, i) for n, i in entries if key_of(n) != "background"]
            entries.insert(0, ("background", 0))
        return make_class_list(entries, where)
    ids = {key_of(name): id_ for id_, name in categories.items()}
    entries = [("background", 0)] if listed.has_background else []
    for name in listed.names:
        found = [ids[key_of(n)] for n in synonyms(name) if key_of(n) in ids]
        if len(found) != 1:
            raise ValueError(
                f"{listed.where}: {name!r} has {len(found)} categories in {where}, expected one of "
                f"{', '.join(list(categories.values())[:10])}"
            )
        entries.append((name, found[0]))
    return make_class_list(entries, listed.where)


def _scan(source: InstanceMasks, sizes: Sequence[tuple[int, int]]) -> Scan:
    pixels: dict[int, int] = collections.Counter()
    first: dict[int, Path] = {}
    for index, size in enumerate(sizes):
        # By the sizes of the JSON: no photo is decoded for the check.
        found = np.unique(source.draw(index, size), return_counts=True)
        for value, count in zip(*(part.tolist() for part in found), strict=True):
            pixels[value] += count
            first.setdefault(value, Path(source.locate(index)))
    return Scan(dict(sorted(pixels.items())), first, in_colours=False, shift=_FIRST)
