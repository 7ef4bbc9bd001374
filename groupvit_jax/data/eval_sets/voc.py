"""Pascal VOC 2012's segmentation: val with 1,449 images, train with 1,464, 20 classes.

    VOCdevkit/VOC2012/
      ImageSets/Segmentation/val.txt        for training: train.txt, trainval.txt
      JPEGImages/2007_000033.jpg
      SegmentationClass/2007_000033.png    0 background, 1-20 classes, 255 border

`voc` evaluates the background as the 21st class, `voc20` ignores its pixels.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from groupvit_jax.data.eval_sets.mask_files import Layout, MaskFiles, class_names, find, read_lines
from groupvit_jax.data.eval_sets.registry import SegmentationSet, register
from groupvit_jax.data.sources.masks import class_ids

_SPLITS = ("val", "train", "trainval")
_LAYOUT = Layout(
    name="voc",
    folders=("VOCdevkit/VOC2012", "VOC2012"),
    needs=("JPEGImages", "SegmentationClass"),
    url="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
)


@register("voc", _SPLITS)
def open_voc(data_dir: Path, split: str) -> SegmentationSet:
    """Open the set of 20 classes and background."""
    return SegmentationSet(_files(data_dir, split, class_ids(21)), class_names("voc"), True)


@register("voc20", _SPLITS)
def open_voc20(data_dir: Path, split: str) -> SegmentationSet:
    """Open the set of 20 classes."""
    return SegmentationSet(
        _files(data_dir, split, class_ids(20, first=1)), class_names("voc"), False
    )


def _files(data_dir: Path, split: str, ids: Mapping[int, int]) -> MaskFiles:
    images = f"ImageSets/Segmentation/{split}.txt"
    _, root = find(data_dir, dataclasses.replace(_LAYOUT, needs=(images, *_LAYOUT.needs)))
    stems = read_lines(root / images)
    photos = [root / "JPEGImages" / f"{stem}.jpg" for stem in stems]
    return MaskFiles(photos, [root / "SegmentationClass" / f"{stem}.png" for stem in stems], ids)
