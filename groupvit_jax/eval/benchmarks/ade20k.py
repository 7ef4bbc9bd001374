"""ADE20K's scene parsing benchmark (2016), validation: 2,000 images, 150 classes.

    ADEChallengeData2016/
      images/validation/ADE_val_00000001.jpg
      annotations/validation/ADE_val_00000001.png    1-150 classes, 0 doesn't count

TFDS's scene_parse150 holds other masks, those of instances.
"""

from pathlib import Path

from groupvit_jax.eval.benchmarks.files import Layout, MaskFiles, class_names, find
from groupvit_jax.eval.benchmarks.registry import SegmentationSet, register
from groupvit_jax.eval.masks import class_ids

_LAYOUT = Layout(
    name="ade20k",
    folders=("ADEChallengeData2016", "ade/ADEChallengeData2016", "ade20k"),
    needs=("images/validation", "annotations/validation"),
    url="http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
)


@register("ade20k")
def open_ade20k(data_dir: Path) -> SegmentationSet:
    """Opens the set."""
    _, root = find(data_dir, _LAYOUT)
    photos = sorted((root / "images/validation").glob("*.jpg"))
    masks = [root / "annotations/validation" / f"{photo.stem}.png" for photo in photos]
    source = MaskFiles(photos, masks, class_ids(150, first=1))
    return SegmentationSet(source, class_names("ade20k"), False)
