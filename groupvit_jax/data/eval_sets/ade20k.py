"""ADE20K's scene parsing benchmark (2016): val with 2,000 images, train with 20,210, 150 classes.

    ADEChallengeData2016/
      images/validation/ADE_val_00000001.jpg
      annotations/validation/ADE_val_00000001.png    1-150 classes, 0 ignored
      {images,annotations}/training/...              for training

TFDS's scene_parse150 has different masks, of instances.
"""

import dataclasses
from pathlib import Path

from groupvit_jax.data.eval_sets.mask_files import Layout, MaskFiles, class_names, find
from groupvit_jax.data.eval_sets.registry import SegmentationSet, register
from groupvit_jax.data.sources.masks import class_ids

_FOLDERS = {"val": "validation", "train": "training"}
_LAYOUT = Layout(
    name="ade20k",
    folders=("ADEChallengeData2016", "ade/ADEChallengeData2016", "ade20k"),
    needs=(),
    url="http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
)


@register("ade20k", tuple(_FOLDERS))
def open_ade20k(data_dir: Path, split: str) -> SegmentationSet:
    """Open the set."""
    images, annotations = (f"{kind}/{_FOLDERS[split]}" for kind in ("images", "annotations"))
    _, root = find(data_dir, dataclasses.replace(_LAYOUT, needs=(images, annotations)))
    photos = sorted((root / images).glob("*.jpg"))
    masks = [root / annotations / f"{photo.stem}.png" for photo in photos]
    source = MaskFiles(photos, masks, class_ids(150, first=1))
    return SegmentationSet(source, class_names("ade20k"), False)
