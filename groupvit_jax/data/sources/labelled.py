"""Images with one class each, for classification and for probes of the image embedding."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from groupvit_jax.data.sources.samples import Sample, Source
from groupvit_jax.data.sources.tar_scan import IMAGE_EXTENSIONS

IMAGE_SUFFIXES = tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)


@runtime_checkable
class LabelledSource(Source, Protocol):
    """A source whose images have one class each."""

    def label(self, index: int) -> int:
        """Return the class index."""


class LabelledFiles:
    """Image files with one class each; the captions of this source are the class names."""

    def __init__(
        self, files: Sequence[Path], labels: Sequence[int], class_names: Sequence[str]
    ) -> None:
        """Take the file and class index of each image."""
        self._items = list(zip(files, labels, strict=True))
        self.class_names = tuple(class_names)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Sample:
        file, label = self._items[index]
        captions = [self.class_names[label]]
        return Sample(image=file.read_bytes(), captions=captions, key=file.name)

    def label(self, index: int) -> int:
        """Return the class index."""
        return self._items[index][1]

    def locate(self, index: int) -> str:
        """Return the path."""
        return os.fspath(self._items[index][0])

    def files(self) -> list[Path]:
        """Return all files of the set."""
        return [file for file, _ in self._items]


class ImageFolder(LabelledFiles):
    """One folder of images per class, named after it; underscores become spaces."""

    def __init__(self, folder: str | os.PathLike) -> None:
        """List the files in order of their names.

        Raises:
          FileNotFoundError: there is no such folder, or no image in its folders.
        """
        root = Path(folder).expanduser()
        if not root.is_dir():
            raise FileNotFoundError(f"{folder}: expected a folder with one folder for each class")
        files = sorted(file for file in root.glob("*/*") if file.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise FileNotFoundError(f"{folder}: no images found, expected CLASS_NAME/IMAGE files")
        names = sorted({_class_name(file) for file in files})
        super().__init__(files, [names.index(_class_name(file)) for file in files], names)


def _class_name(file: Path) -> str:
    return file.parent.name.replace("_", " ")
