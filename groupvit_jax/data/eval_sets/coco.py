"""COCO 2017 as COCO-Object (80 things) and COCO-Stuff (171 classes).

val2017 has 5,000 images; train2017, with 118,287, has the same layout.

    coco/
      val2017/000000000139.jpg
      stuffthingmaps/val2017/000000000139.png    COCO-Stuff's maps: id - 1; 255 unlabelled
      annotations/instances_val2017.json

The maps may also be in coco/stuffthingmaps_trainval2017/val2017 (the name of their archive), or as
coco_stuff164k/{images,annotations}/val2017. `coco_stuff` requires them and ignores unlabelled
pixels. `coco_object` evaluates everything but the 80 things as background; without the maps it
draws the instances of the JSON (see `draw_instances`).
"""

from pathlib import Path

from groupvit_jax.data.eval_sets.coco_instances import InstanceMasks
from groupvit_jax.data.eval_sets.mask_files import Layout, MaskFiles, class_names, find
from groupvit_jax.data.eval_sets.registry import SegmentationSet, register
from groupvit_jax.data.sources.masks import IGNORED, MaskedSource

_URL = "https://cocodataset.org/#download and https://github.com/nightrome/cocostuff"
_SPLITS = ("val", "train")
NUM_THINGS = 80
# Ids from 1 to 182 that were reserved for classes but never annotated.
_ABSENT = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
_IDS = tuple(id_ for id_ in range(1, 183) if id_ not in _ABSENT)


@register("coco_stuff", _SPLITS)
def open_coco_stuff(data_dir: Path, split: str) -> SegmentationSet:
    """Open the set of 171 classes."""
    ids = {id_ - 1: class_ for class_, id_ in enumerate(_IDS)} | {IGNORED: IGNORED}
    source = _map_files(*find(data_dir, *_map_layouts(split)), ids)
    return SegmentationSet(source, class_names("coco_stuff"), False)


@register("coco_object", _SPLITS)
def open_coco_object(data_dir: Path, split: str) -> SegmentationSet:
    """Open the set of 80 things and background."""
    needs = (f"{split}2017", f"annotations/instances_{split}2017.json")
    instances = Layout("coco", ("coco",), needs, _URL)
    layout, root = find(data_dir, *_map_layouts(split), instances)
    # Ids up to 90, of which 80 are in use, are things; those above are stuff.
    things = {id_: 1 + class_ for class_, id_ in enumerate(_IDS[:NUM_THINGS])}
    source: MaskedSource
    if layout is instances:
        photos, annotations = (root / need for need in needs)
        source = InstanceMasks(annotations, photos, things | {0: 0})
    else:
        background = dict.fromkeys([*(id_ - 1 for id_ in _IDS), IGNORED], 0)
        things = {id_ - 1: class_ for id_, class_ in things.items()}
        source = _map_files(layout, root, background | things)
    return SegmentationSet(source, class_names("coco_stuff")[:NUM_THINGS], True)


def _map_layouts(split: str) -> tuple[Layout, Layout]:
    part = f"{split}2017"
    needs = (f"images/{part}", f"annotations/{part}")
    return (
        Layout("coco", ("coco",), (part, f"stuffthingmaps*/{part}"), _URL),
        Layout("coco", ("coco_stuff164k",), needs, _URL),
    )


def _map_files(layout: Layout, root: Path, ids: dict[int, int]) -> MaskFiles:
    photo_folder, map_folder = (next(root.glob(need)) for need in layout.needs)
    photos = sorted(photo_folder.glob("*.jpg"))
    return MaskFiles(photos, [map_folder / f"{photo.stem}.png" for photo in photos], ids)
