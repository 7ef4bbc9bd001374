"""Cityscapes val: 500 street scenes, 19 classes.

    cityscapes/
      leftImg8bit/val/frankfurt/frankfurt_000000_000294_leftImg8bit.png
      gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelIds.png

The masks hold the official ids; those outside the benchmark are ignored. If the set's own tools
have written `*_gtFine_labelTrainIds.png` (0-18, 255) for every photo, these are read instead. The
TFDS set is cityscapes/semantic_segmentation.
"""

from pathlib import Path

from groupvit_jax.data.eval_sets.mask_files import Layout, MaskFiles, class_names, find
from groupvit_jax.data.eval_sets.registry import SegmentationSet, register
from groupvit_jax.data.sources.masks import IGNORED, MaskedSource, TfdsMasks, class_ids

_URL = "https://www.cityscapes-dataset.com/downloads/"
_FILES = Layout("cityscapes", ("cityscapes",), ("leftImg8bit/val", "gtFine/val"), _URL)
_TFDS = Layout("cityscapes", ("cityscapes/semantic_segmentation/*",), ("features.json",), _URL)
# labels.py of https://github.com/mcordts/cityscapesScripts: ids of the evaluated classes, in order.
_EVALUATED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_LABEL_IDS = dict.fromkeys([*range(34), IGNORED], IGNORED) | {
    id_: class_ for class_, id_ in enumerate(_EVALUATED)
}


@register("cityscapes")
def open_cityscapes(data_dir: Path) -> SegmentationSet:
    """Open the set."""
    layout, root = find(data_dir, _FILES, _TFDS)
    return SegmentationSet(
        _files(root) if layout is _FILES else _tfds(root), class_names("cityscapes"), False
    )


def _tfds(root: Path) -> MaskedSource:
    features = {"image": "image_left", "mask": "segmentation_label"}
    return TfdsMasks("cityscapes", "validation", str(root), ids=_LABEL_IDS, **features)


def _files(root: Path) -> MaskedSource:
    photos = sorted((root / "leftImg8bit/val").glob("*/*_leftImg8bit.png"))
    stems = [
        root / "gtFine/val" / photo.parent.name / photo.name.removesuffix("_leftImg8bit.png")
        for photo in photos
    ]
    train_ids = [stem.with_name(f"{stem.name}_gtFine_labelTrainIds.png") for stem in stems]
    if all(file.exists() for file in train_ids):
        return MaskFiles(photos, train_ids, class_ids(19))
    label_ids = [stem.with_name(f"{stem.name}_gtFine_labelIds.png") for stem in stems]
    return MaskFiles(photos, label_ids, _LABEL_IDS)
