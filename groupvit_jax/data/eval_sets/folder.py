"""A user's own images and masks.

    ROOT/
      classes.txt            one name per line; the first line is mask value 0
      images/anything.jpg    JPEG, PNG, WebP, BMP, GIF, TIFF or AVIF
      masks/anything.png     greyscale or palette; 255 is ignored

If the first line is `background`, its pixels are evaluated as the background class.
"""

from pathlib import Path

from groupvit_jax.data.eval_sets.mask_files import Layout, MaskFiles, find, read_lines
from groupvit_jax.data.eval_sets.registry import SegmentationSet, register
from groupvit_jax.data.sources.labelled import IMAGE_SUFFIXES
from groupvit_jax.data.sources.masks import class_ids

_LAYOUT = Layout("folder", ("folder",), ("classes.txt", "images", "masks"), "your own images")


@register("folder")
def open_folder(data_dir: Path) -> SegmentationSet:
    """Open the set; raise ValueError if classes.txt has no name, too many, or one twice."""
    _, root = find(data_dir, _LAYOUT)
    names = read_lines(root / "classes.txt")
    has_background = names[:1] == ("background",)
    if not has_background < len(names) <= 255:
        raise ValueError(f"{root / 'classes.txt'}: {len(names)} names found, expected 1 to 255")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f"{root / 'classes.txt'}: {twice[0]!r} found twice, expected each name once"
        )
    photos = [f for f in sorted((root / "images").iterdir()) if f.suffix.lower() in IMAGE_SUFFIXES]
    masks = [root / "masks" / f"{photo.stem}.png" for photo in photos]
    source = MaskFiles(photos, masks, class_ids(len(names)))
    return SegmentationSet(source, names[has_background:], has_background)
