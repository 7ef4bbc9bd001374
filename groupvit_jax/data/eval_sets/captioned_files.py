"""Image files with captions, and the JSON files of Karpathy and Li's splits."""

import json
from collections.abc import Sequence
from pathlib import Path

from groupvit_jax.data.eval_sets.mask_files import below
from groupvit_jax.data.sources.captions_table import read_captions
from groupvit_jax.data.sources.samples import Sample
from groupvit_jax.foreign import naming


class CaptionedFiles:
    """A source of image files with captions."""

    def __init__(self, files: Sequence[Path], captions: Sequence[Sequence[str]]) -> None:
        """Take the file and captions of each image."""
        self._items = list(zip(files, captions, strict=True))

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Sample:
        """Read a file; raise a ValueError that names it if it doesn't exist."""
        file, captions = self._items[index]
        with naming(file):
            return Sample(image=file.read_bytes(), captions=list(captions), key=file.name)

    def locate(self, index: int) -> str:
        """Return the path."""
        return str(self._items[index][0])

    def files(self) -> list[Path]:
        """Return all images of the set."""
        return [file for file, _ in self._items]


def read_karpathy(path: Path, photos: Path, split: str = "test") -> CaptionedFiles:
    """Read the images of one split from dataset_*.json.

    Args:
      path: the JSON.
      photos: the folder of its images.
      split: e.g. "test".

    Raises:
      ValueError: the file has another format, or no image in that split.
    """
    try:
        images = [i for i in json.loads(path.read_bytes())["images"] if i["split"] == split]
        names = [image["filename"] for image in images]
        captions = [[text["raw"].strip() for text in image["sentences"]] for image in images]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        expected = "expected images with filename, split and sentences"
        raise ValueError(f"{path}: {expected}, got {error!r}") from error
    if not images:
        raise ValueError(f"{path}: no image of split {split!r} found")
    return CaptionedFiles([below(photos, name, str(path)) for name in names], captions)


def read_table(path: Path, photos: Path) -> CaptionedFiles:
    """Read all images of a CSV or COCO JSON; for errors, see `captions_table.read_captions`."""
    items = read_captions(str(path))
    if not items:
        raise ValueError(f"{path}: no image found")
    files = [below(photos, item.file, str(path)) for item in items]
    return CaptionedFiles(files, [[c.strip() for c in item.captions] for item in items])
