"""Images of your own to classify, in folders named after their classes.

image_folder/
  red_panda/anything.jpg    underscores stand for spaces
  tabby cat/anything.png
"""

from pathlib import Path

from groupvit_jax.eval.benchmarks.registry import ClassificationSet, register
from groupvit_jax.eval.zero_shot import ImageFolder


@register("image_folder")
def open_image_folder(data_dir: Path) -> ClassificationSet:
    """Opens `data_dir`/image_folder, or `data_dir` itself where that isn't there."""
    own = data_dir / "image_folder"
    source = ImageFolder(own if own.is_dir() else data_dir)
    return ClassificationSet(source, source.class_names)
