"""A file that describes a set of one's own, in TOML or JSON.

    name = "lesions"               # in results; default: the folder's
    images = "images"              # searched with all folders below
    masks = "labels"               # the same, or COCO's instances.json
    image_suffix = "_rgb"          # behind the common part of the names; default: found out
    mask_suffix = "_mask"
    classes = "classes.txt"        # or a list of names, or a table of values or colours
    background = "healthy"         # the class that is the background; false: none
    ignored = [0]                  # values or colours of unlabelled pixels; default: 255
    background_threshold = 0.5     # and prompts, where the flags don't say otherwise
    prompts = ["a photo of a {}."]
    megapixels = 100               # of the largest photo; default: 50

Paths start at the file's folder. Every field may be left out.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from groupvit_jax.data.eval_sets.class_list import (
    ClassList,
    Colour,
    parse_classes,
    read_class_list,
    with_background,
)
from groupvit_jax.data.images.decode import MAX_PIXELS
from groupvit_jax.foreign import naming, read_table

FILES = ("set.toml", "set.json")  # in a set's own folder
_CLASS_FILES = ("classes.txt", "labelmap.txt")
_COCO_FILES = ("instances.json", "annotations.json", "_annotations.coco.json", "instances_*.json")


@dataclasses.dataclass(frozen=True)
class Description:
    """A set of one's own; paths are absolute.

    Attributes:
      name: of the set in results; "" for none of its own.
      file: what describes the set, for messages.
      images: folder of the photos.
      masks: folder of the masks, or a JSON of COCO.
      image_suffix: what photos' names have behind the part that they share with the masks'.
      mask_suffix: the same of the masks; None to find it out.
      classes: their list; None where COCO's JSON has it.
      ignored: values or colours that aren't evaluated; None for the usual ones.
      background: the name of the background, or whether unlabelled pixels of COCO's JSON are one.
      background_threshold: what a class has to score; None for the protocol's.
      prompts: templates; () for the protocol's.
      max_pixels: larger photos are refused.
    """

    name: str
    file: Path
    images: Path
    masks: Path
    image_suffix: str = ""
    mask_suffix: str | None = None
    classes: ClassList | None = None
    ignored: tuple[int | Colour, ...] | None = None
    background: str | bool | None = None
    background_threshold: float | None = None
    prompts: tuple[str, ...] = ()
    max_pixels: int = MAX_PIXELS


_KINDS: Mapping[str, tuple[type | tuple[type, ...], str]] = {
    "name": (str, "a text"),
    "images": (str, "a folder"),
    "masks": (str, "a folder or a JSON of COCO"),
    "image_suffix": (str, "a text"),
    "mask_suffix": (str, "a text"),
    "classes": ((str, list, dict), "a file, a list of names or a table of values"),
    "background": ((str, bool), "the name of a class, or false"),
    "ignored": (list, "a list of values or colours"),
    "background_threshold": ((int, float), "a number from 0 to 1"),
    "prompts": (list, "a list of texts"),
    "megapixels": ((int, float), "a number"),
}


def read_description(place: Path) -> Description:
    """Read a description, or make one of a folder that has the usual names in it.

    Args:
      place: the file, or the set's folder.

    Raises:
      ValueError: a field is unknown or wrong; names file and field.
      FileNotFoundError: there are no photos, masks or classes where they are expected.
    """
    file = place
    if place.is_dir():
        file = next((place / name for name in FILES if (place / name).is_file()), place)
    root = file if file.is_dir() else file.parent
    fields = {} if file.is_dir() else _fields(file)
    masks = root / fields["masks"] if "masks" in fields else _usual_masks(root)
    images = root / fields["images"] if "images" in fields else _usual_images(root, masks)
    for field, path in (("images", images), ("masks", masks)):
        if not path.exists():
            raise FileNotFoundError(f"{file}: {field}: {path} not found; see docs/evaluate.md")
    classes = _classes(file, root, fields.get("classes"), masks.is_file())
    background = fields.get("background")
    if classes is not None and background is not None and background is not True:
        classes = with_background(classes, background)
    ignored = fields.get("ignored")
    return Description(
        name=fields.get("name", ""),
        file=file,
        images=images,
        masks=masks,
        image_suffix=fields.get("image_suffix", ""),
        mask_suffix=fields.get("mask_suffix"),
        classes=classes,
        ignored=None if ignored is None else tuple(map(_ignored_value, ignored)),
        background=background,
        background_threshold=fields.get("background_threshold"),
        prompts=tuple(fields.get("prompts", ())),
        max_pixels=int(fields.get("megapixels", MAX_PIXELS / 1e6) * 1e6),
    )


def _fields(file: Path) -> dict[str, Any]:
    with naming(file):
        fields = read_table(file)
        if not isinstance(fields, dict):
            raise ValueError(f"{type(fields).__name__} found, expected a table of fields")
        for name, value in fields.items():
            if name not in _KINDS:
                raise ValueError(f"field {name!r} found, expected some of {', '.join(_KINDS)}")
            kind, expected = _KINDS[name]
            # True is an int in Python, and would pass for a number.
            is_flag = isinstance(value, bool) and name != "background"
            if is_flag or not isinstance(value, kind):
                raise ValueError(f"{name}: {value!r} found, expected {expected}")
    return fields


def _usual_masks(root: Path) -> Path:
    """Return the folder of masks, or COCO's JSON of the photos.

    Raises:
      ValueError: there are several such files.
    """
    if (root / "masks").exists():
        return root / "masks"
    found = coco_files(root)
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(root)) for path in found)
        raise ValueError(
            f"{root}: {len(found)} files of COCO's instances found ({names}), expected one, or "
            "masks = 'FILE' in a description (docs/evaluate.md)"
        )
    return found[0] if found else root / "masks"


def coco_files(root: Path) -> list[Path]:
    """Return the files below a folder that are named as COCO's instances are."""
    return sorted({path for name in _COCO_FILES for path in root.rglob(name)})


def _usual_images(root: Path, masks: Path) -> Path:
    """Return the folder of photos; of COCO's JSON, the one below `root` that has its first photo.

    COCO has `annotations/instances_val2017.json` and `val2017`, Roboflow the file among the photos.
    """
    if (root / "images").exists() or not masks.is_file():
        return root / "images"
    with naming(masks):
        listed = [image["file_name"] for image in json.loads(masks.read_bytes())["images"][:1]]
    found = [path for name in listed for path in sorted(root.rglob(Path(name).name))]
    # A file's name in the JSON may have folders of its own.
    places = [path.parents[len(Path(listed[0]).parts) - 1] for path in found]
    return places[0] if len(places) == 1 else root / "images"


def _classes(file: Path, root: Path, given: Any, from_coco: bool) -> ClassList | None:
    if isinstance(given, list | dict):
        return parse_classes(given, str(file))
    names = (given,) if given is not None else _CLASS_FILES
    found = next((root / name for name in names if (root / name).is_file()), None)
    if found is not None:
        return read_class_list(found)
    if from_coco and given is None:
        return None
    raise FileNotFoundError(f"{root / names[0]} not found, expected a class on each line")


def _ignored_value(value: Any) -> int | Colour:
    if isinstance(value, list) and len(value) == 3:
        return value[0], value[1], value[2]
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"ignored: {value!r} found, expected values or colours such as [255, 0, 0]")
