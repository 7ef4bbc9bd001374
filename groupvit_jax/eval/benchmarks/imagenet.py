"""ImageNet's validation (ILSVRC 2012): 50,000 images, 1,000 classes with CLIP's names.

Either one folder for each synset,

    imagenet/
      val/n01440764/ILSVRC2012_val_00000293.JPEG

or the official download as it is unpacked, with its development kit,

    imagenet/
      val/ILSVRC2012_val_00000001.JPEG    (or ILSVRC2012_img_val)
      ILSVRC2012_devkit_t12/data/{ILSVRC2012_validation_ground_truth.txt,meta.mat}

As a TFDS set it is imagenet2012.
"""

from collections.abc import Sequence
from pathlib import Path

import scipy.io
import tensorflow_datasets as tfds

from groupvit_jax.data.sources import Sample
from groupvit_jax.eval.benchmarks.files import Layout, class_names, find, read_lines
from groupvit_jax.eval.benchmarks.registry import ClassificationSet, register
from groupvit_jax.eval.zero_shot import IMAGE_SUFFIXES, LabelledFiles

_URL = "https://image-net.org/download-images"
_FOLDERS = ("imagenet", "ImageNet", "ILSVRC2012")
_TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
_META = "ILSVRC2012_devkit_t12/data/meta.mat"
_SYNSETS = Layout("imagenet", _FOLDERS, ("val/n0*",), _URL)
_FLAT = tuple(
    Layout("imagenet", _FOLDERS, (f"{folder}/ILSVRC2012_val_*.JPEG", _TRUTH, _META), _URL)
    for folder in ("val", "ILSVRC2012_img_val")
)
_TFDS = Layout("imagenet", ("imagenet2012/*",), ("features.json",), _URL)


@register("imagenet")
def open_imagenet(data_dir: Path) -> ClassificationSet:
    """Opens the set; raises ValueError if a file's class can't be told."""
    layout, root = find(data_dir, _SYNSETS, *_FLAT, _TFDS)
    names, synsets = class_names("imagenet"), class_names("imagenet_synsets")
    if layout is _TFDS:
        return ClassificationSet(TfdsImages(root, synsets), names)
    if layout is _SYNSETS:
        files = [
            f for f in sorted((root / "val").glob("*/*")) if f.suffix.lower() in IMAGE_SUFFIXES
        ]
        labels = _labels(root, [file.parent.name for file in files], synsets)
    else:
        files = sorted(root.glob(layout.needs[0]))
        labels = _labels(root, _true_synsets(root, files), synsets)
    return ClassificationSet(LabelledFiles(files, labels, names), names)


def _labels(root: Path, found: Sequence[str], synsets: Sequence[str]) -> list[int]:
    index = {synset: i for i, synset in enumerate(synsets)}
    if unknown := sorted(set(found) - index.keys()):
        raise ValueError(
            f"{root}: class {unknown[0]!r} found, expected one of the {len(synsets)} synsets of "
            "ILSVRC 2012 (n01440764, ...)"
        )
    return [index[synset] for synset in found]


def _true_synsets(root: Path, files: Sequence[Path]) -> list[str]:
    """Reads the development kit, whose own numbering of the classes meta.mat explains."""
    content = scipy.io.loadmat(root / _META, variable_names=["synsets"], squeeze_me=True)
    synset_of = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in content["synsets"]}
    truth = [int(line) for line in read_lines(root / _TRUTH)]
    numbers = [int(file.stem.removeprefix("ILSVRC2012_val_")) for file in files]
    if max(numbers) > len(truth):
        raise ValueError(
            f"{root / _TRUTH}: {len(truth)} lines found, expected one for each image to "
            f"{files[-1].name}"
        )
    return [synset_of[truth[number - 1]] for number in numbers]


class TfdsImages:
    """The validation split of the TFDS set imagenet2012; a labelled source."""

    def __init__(self, root: Path, synsets: Sequence[str]) -> None:
        """Opens the folder of the set's version; raises ValueError if it isn't imagenet2012."""
        self._root = root
        try:
            builder = tfds.builder_from_directory(root)
            skip = {"image": tfds.decode.SkipDecoding()}
            self._examples = builder.as_data_source("validation", decoders=skip)
            self._labels = _labels(root, builder.info.features["label"].names, synsets)
        except (AttributeError, KeyError, NotImplementedError) as error:
            raise ValueError(f"{root}: expected the TFDS set imagenet2012, got {error}") from error
        self._names = class_names("imagenet")

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Sample:
        name = self._names[self.label(index)]
        return Sample(image=self._examples[index]["image"], captions=[name], key=str(index))

    def label(self, index: int) -> int:
        """Returns the class."""
        return self._labels[self._examples[index]["label"]]

    def locate(self, index: int) -> str:
        """Returns the set's folder and the image's number."""
        return f"{self._root}, image {index}"
