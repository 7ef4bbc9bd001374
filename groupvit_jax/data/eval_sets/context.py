"""Pascal Context val: the 59 most frequent of 459 classes, on VOC 2010 images.

Reads either the common conversion, whose masks have 0 for the background and 1-59 for the classes
in alphabetical order (5,104 images),

    VOCdevkit/VOC2010/
      ImageSets/SegmentationContext/val.txt
      JPEGImages/2008_000002.jpg
      SegmentationClassContext/2008_000002.png

or the official download, one .mat file with all 459 classes per image, unpacked into VOC 2010 (the
5,105 images of VOC's val.txt that have such a file):

    VOCdevkit/VOC2010/
      ImageSets/Main/val.txt
      JPEGImages/2008_000002.jpg
      trainval/2008_000002.mat

`context` evaluates all other classes as background, `context59` ignores their pixels.
"""

import io
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from groupvit_jax.data.eval_sets.mask_files import Layout, MaskFiles, class_names, find, read_lines
from groupvit_jax.data.eval_sets.registry import SegmentationSet, register
from groupvit_jax.data.sources.masks import class_ids

_FOLDERS = ("VOCdevkit/VOC2010", "VOC2010")
_URL = "https://cs.stanford.edu/~roozbeh/pascal-context/"
_PNG = Layout(
    name="context",
    folders=_FOLDERS,
    needs=("ImageSets/SegmentationContext/val.txt", "JPEGImages", "SegmentationClassContext"),
    url=_URL,
)
_MAT = Layout(
    name="context",
    folders=_FOLDERS,
    needs=("ImageSets/Main/val.txt", "JPEGImages", "trainval"),
    url=_URL,
)
# Ids of the 59 classes among the 459 of labels.txt, both in alphabetical order.
_IDS_OF_459 = (
    *(2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98),
    *(104, 105, 113, 115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295),
    *(296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440),
    *(445, 454, 458),
)


@register("context")
def open_context(data_dir: Path) -> SegmentationSet:
    """Open the set of 59 classes and background."""
    return SegmentationSet(_files(data_dir, background=True), class_names("context"), True)


@register("context59")
def open_context59(data_dir: Path) -> SegmentationSet:
    """Open the set of 59 classes."""
    return SegmentationSet(_files(data_dir, background=False), class_names("context"), False)


def _files(data_dir: Path, background: bool) -> MaskFiles:
    layout, root = find(data_dir, _PNG, _MAT)
    ids = class_ids(60) if background else class_ids(59, first=1)
    if layout is _PNG:
        stems = read_lines(root / "ImageSets/SegmentationContext/val.txt")
        masks = [root / "SegmentationClassContext" / f"{stem}.png" for stem in stems]
        return MaskFiles(_photos(root, stems), masks, ids)
    present = {file.stem for file in (root / "trainval").glob("*.mat")}
    stems = tuple(s for s in read_lines(root / "ImageSets/Main/val.txt") if s in present)
    masks = [root / "trainval" / f"{stem}.mat" for stem in stems]
    # ids[0] is the class of all else: background, or ignored.
    others = dict.fromkeys(range(460), ids[0])
    of_459 = others | {id_: ids[1 + i] for i, id_ in enumerate(_IDS_OF_459)}
    return MaskFiles(_photos(root, stems), masks, of_459, _read_mat)


def _photos(root: Path, stems: tuple[str, ...]) -> list[Path]:
    return [root / "JPEGImages" / f"{stem}.jpg" for stem in stems]


def _read_mat(path: Path, size: tuple[int, int]) -> Integer[np.ndarray, "H W"]:
    """Read the map of a .mat file; the caller compares its size with the photo's."""
    del size
    content = path.read_bytes()
    try:
        import scipy.io  # a third of a second, for this set alone

        return scipy.io.loadmat(io.BytesIO(content))["LabelMap"].astype(np.int32)
    except Exception as error:  # a damaged file raises any of many unrelated types
        raise ValueError(f"expected a .mat file with a LabelMap, got {error!r}") from error
