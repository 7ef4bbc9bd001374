"""A user's own images for classification, in folders named after their classes.

image_folder/
  red_panda/anything.jpg    underscores become spaces
  tabby cat/anything.png

Probes need two such folders, image_folder/train and image_folder/val.
"""

from pathlib import Path

from groupvit_jax.data.eval_sets.registry import ClassificationSet, register
from groupvit_jax.data.sources.labelled import ImageFolder


@register("image_folder", ("val", "train"))
def open_image_folder(data_dir: Path, split: str) -> ClassificationSet:
    """Open `data_dir`/image_folder, or `data_dir` itself if that doesn't exist."""
    own = data_dir / "image_folder"
    root = own if own.is_dir() else data_dir
    is_split = (root / "train").is_dir() and (root / "val").is_dir()
    source = ImageFolder(root / split if is_split or split == "train" else root)
    return ClassificationSet(source, source.class_names)
