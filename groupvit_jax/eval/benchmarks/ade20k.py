"""ADE20K's scene parsing benchmark (2016), validation: 2,000 images, 150 classes.

    ADEChallengeData2016/
      images/validation/ADE_val_00000001.jpg
      annotations/validation/ADE_val_00000001.png    1-150 classes, 0 doesn't count

As a TFDS set it is scene_parse150.
"""

from pathlib import Path

from groupvit_jax.eval.benchmarks.files import Layout, MaskFiles, class_names, find
from groupvit_jax.eval.benchmarks.registry import SegmentationSet, register
from groupvit_jax.eval.masks import TfdsMasks, class_ids

_URL = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
_FILES = Layout(
    name="ade20k",
    folders=("ADEChallengeData2016", "ade/ADEChallengeData2016", "ade20k"),
    needs=("images/validation", "annotations/validation"),
    url=_URL,
)
_TFDS = Layout("ade20k", ("scene_parse150/*",), ("features.json",), _URL)


@register("ade20k")
def open_ade20k(data_dir: Path) -> SegmentationSet:
    """Opens the set."""
    layout, root = find(data_dir, _FILES, _TFDS)
    ids = class_ids(150, first=1)
    if layout is _TFDS:
        source = TfdsMasks("scene_parse150", "test", str(root), mask="annotation", ids=ids)
        return SegmentationSet(source, class_names("ade20k"), False)
    photos = sorted((root / "images/validation").glob("*.jpg"))
    masks = [root / "annotations/validation" / f"{photo.stem}.png" for photo in photos]
    return SegmentationSet(MaskFiles(photos, masks, ids), class_names("ade20k"), False)
