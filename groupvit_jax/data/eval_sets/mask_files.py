"""Shared by the readers of evaluation sets: locating a set, name lists, and mask files."""

import dataclasses
import importlib.resources
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from groupvit_jax.data.images.decode import MAX_PIXELS
from groupvit_jax.data.sources.masks import IdTable, MaskedImage, decode_photo, pair, read_mask
from groupvit_jax.foreign import naming, read_text


@dataclasses.dataclass(frozen=True)
class Layout:
    """One layout of a set on disk.

    Attributes:
      name: the set's name, for messages.
      folders: customary locations below the data folder (`Path.glob` patterns).
      needs: files and folders that identify the set (patterns too).
      url: the page of its download.
    """

    name: str
    folders: tuple[str, ...]
    needs: tuple[str, ...]
    url: str

    def places(self, data_dir: Path) -> list[Path]:
        """Return candidate folders; later versions of a TFDS set come first."""
        # Backwards: of several versions the latest comes first.
        found = [place for folder in self.folders for place in sorted(data_dir.glob(folder))[::-1]]
        return [data_dir, *found] if data_dir.is_dir() else []

    def missing(self, place: Path) -> list[str]:
        """Return the required files that a folder lacks."""
        return [need for need in self.needs if not any(place.glob(need))]

    def __str__(self) -> str:
        needs = ", ".join(self.needs)
        return f"{self.folders[0]}/{needs if len(self.needs) == 1 else '{' + needs + '}'}"


def find(data_dir: Path, *layouts: Layout) -> tuple[Layout, Path]:
    """Return the first layout found on disk, and its folder.

    Raises:
      FileNotFoundError: none is found; names the first missing file of the most complete one.
    """
    # The customary place, unless some other has a part of what it needs.
    nearest, fewest = data_dir / layouts[0].folders[0] / layouts[0].needs[0], 1.0
    for layout in layouts:
        for place in layout.places(data_dir):
            missing = layout.missing(place)
            if not missing:
                return layout, place
            if len(missing) / len(layout.needs) < fewest:
                nearest, fewest = place / missing[0], len(missing) / len(layout.needs)
    expected = " or ".join(map(str, layouts))
    raise FileNotFoundError(
        f"{layouts[0].name}: {nearest} not found; expected in {data_dir} (or that folder itself): "
        f"{expected}; from {layouts[0].url}; see docs/benchmarks.md"
    )


def class_names(name: str) -> tuple[str, ...]:
    """Return the names in classes/NAME.txt."""
    file = importlib.resources.files(__package__).joinpath("classes", f"{name}.txt")
    return _names(file.read_text("utf-8"))


def read_lines(path: Path) -> tuple[str, ...]:
    """Return the lines that are neither blank nor comments; a ValueError names the file."""
    with naming(path):
        return _names(read_text(path))


def _names(text: str) -> tuple[str, ...]:
    lines = (line.strip() for line in text.splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))


def below(root: Path, name: Any, where: str) -> Path:
    """Return root/name; raise ValueError if a name read from a file leaves `root`."""
    if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{where}: file name {name!r} found, expected one inside {root}")
    return root / name


def read_png(path: Path, size: tuple[int, int]) -> Integer[np.ndarray, "H W"]:
    """Read a mask from a PNG; see `masks.read_mask`."""
    return read_mask(path.read_bytes(), size)


class MaskFiles:
    """A masked source of photo and mask files."""

    def __init__(
        self,
        photos: Sequence[Path],
        masks: Sequence[Path],
        ids: Mapping[int, int],
        read: Callable[[Path, tuple[int, int]], np.ndarray] = read_png,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Pairs photos with masks.

        Args:
          photos: image files.
          masks: mask files, in the same order.
          ids: stored value -> class; see `masks.IdTable`.
          read: maps a mask file and its photo's size to the stored values [H, W].
          max_pixels: larger photos are refused.
        """
        self._files = list(zip(photos, masks, strict=True))
        self._ids, self._read, self._max_pixels = IdTable(ids), read, max_pixels

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> MaskedImage:
        photo_file, mask_file = self._files[index]
        with naming(photo_file):
            photo = decode_photo(photo_file.read_bytes(), self._max_pixels)
        with naming(mask_file):
            return pair(photo, self._read(mask_file, photo.stored_size), self._ids)

    def locate(self, index: int) -> str:
        """Return the photo's path."""
        return str(self._files[index][0])

    def files(self) -> list[Path]:
        """Return all files that the set consists of."""
        return [file for pair_ in self._files for file in pair_]
