"""COCO's val2017, 5,000 images, as COCO-Object (80 things) and COCO-Stuff (171 classes).

    coco/
      val2017/000000000139.jpg
      stuffthingmaps/val2017/000000000139.png    COCO-Stuff's maps: id - 1; 255 unlabelled
      annotations/instances_val2017.json

The maps may also lie in coco/stuffthingmaps_trainval2017/val2017 (their archive's name), or as
coco_stuff164k/{images,annotations}/val2017. `coco_stuff` needs them and leaves unlabelled pixels
out. `coco_object` evaluates all that is not one of the 80 things as background; without the maps it
draws the instances of the JSON: see `draw_instances`.
"""

from pathlib import Path

from groupvit_jax.eval.benchmarks.coco_instances import InstanceMasks
from groupvit_jax.eval.benchmarks.files import Layout, MaskFiles, class_names, find
from groupvit_jax.eval.benchmarks.registry import SegmentationSet, register
from groupvit_jax.eval.masks import MaskedSource
from groupvit_jax.eval.metrics import IGNORED

_URL = "https://cocodataset.org/#download and https://github.com/nightrome/cocostuff"
_MAPS = Layout("coco", ("coco",), ("val2017", "stuffthingmaps*/val2017"), _URL)
_MAPS_164K = Layout("coco", ("coco_stuff164k",), ("images/val2017", "annotations/val2017"), _URL)
_INSTANCES = Layout("coco", ("coco",), ("val2017", "annotations/instances_val2017.json"), _URL)
NUM_THINGS = 80
# Ids from 1 to 182 that were planned as classes and never annotated.
_ABSENT = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
_IDS = tuple(id_ for id_ in range(1, 183) if id_ not in _ABSENT)


@register("coco_stuff")
def open_coco_stuff(data_dir: Path) -> SegmentationSet:
    """Opens the set of 171 classes."""
    ids = {id_ - 1: class_ for class_, id_ in enumerate(_IDS)} | {IGNORED: IGNORED}
    source = _map_files(*find(data_dir, _MAPS, _MAPS_164K), ids)
    return SegmentationSet(source, class_names("coco_stuff"), False)


@register("coco_object")
def open_coco_object(data_dir: Path) -> SegmentationSet:
    """Opens the set of 80 things and background."""
    layout, root = find(data_dir, _MAPS, _MAPS_164K, _INSTANCES)
    things = {id_: 1 + class_ for class_, id_ in enumerate(_IDS[:NUM_THINGS])}
    source: MaskedSource
    if layout is _INSTANCES:
        annotations = root / "annotations/instances_val2017.json"
        source = InstanceMasks(annotations, root / "val2017", things | {0: 0})
    else:
        background = dict.fromkeys([*(id_ - 1 for id_ in _IDS), IGNORED], 0)
        things = {id_ - 1: class_ for id_, class_ in things.items()}
        source = _map_files(layout, root, background | things)
    return SegmentationSet(source, class_names("coco_stuff")[:NUM_THINGS], True)


def _map_files(layout: Layout, root: Path, ids: dict[int, int]) -> MaskFiles:
    photo_folder, map_folder = (next(root.glob(need)) for need in layout.needs)
    photos = sorted(photo_folder.glob("*.jpg"))
    return MaskFiles(photos, [map_folder / f"{photo.stem}.png" for photo in photos], ids)
