"""ImageNet (ILSVRC 2012): val with 50,000 images, train with 1,281,167; 1,000 classes.

Class names are CLIP's. Images are in one folder per synset, or all in one folder as the download
unpacks; the labels then come from TFDS's list.

    imagenet/
      val/n01440764/ILSVRC2012_val_00000293.JPEG
      val/ILSVRC2012_val_00000293.JPEG              or ILSVRC2012_img_val

Training images are in train/n01440764/. The TFDS set is imagenet2012.
"""

from collections.abc import Sequence
from pathlib import Path

from groupvit_jax.data.eval_sets.mask_files import Layout, class_names, find, read_lines
from groupvit_jax.data.eval_sets.registry import ClassificationSet, register
from groupvit_jax.data.sources.labelled import IMAGE_SUFFIXES, LabelledFiles
from groupvit_jax.data.sources.samples import Sample

_URL = "https://image-net.org/download-images"
_FOLDERS = ("imagenet", "ImageNet", "ILSVRC2012")
_FLAT = tuple(
    Layout("imagenet", _FOLDERS, (f"{folder}/ILSVRC2012_val_*.JPEG",), _URL)
    for folder in ("val", "ILSVRC2012_img_val")
)
_TFDS_SPLITS = {"val": "validation", "train": "train"}
_TFDS = Layout("imagenet", ("imagenet2012/*",), ("features.json",), _URL)


@register("imagenet", ("val", "train"))
def open_imagenet(data_dir: Path, split: str) -> ClassificationSet:
    """Open the set; raise ValueError if the class of a file is unknown."""
    synset_folders = Layout("imagenet", _FOLDERS, (f"{split}/n0*",), _URL)
    flat = _FLAT if split == "val" else ()
    layout, root = find(data_dir, synset_folders, *flat, _TFDS)
    names = class_names("imagenet")
    if layout is _TFDS:
        return ClassificationSet(TfdsImages(root, _TFDS_SPLITS[split]), names)
    if layout is synset_folders:
        files = sorted(f for f in root.glob(f"{split}/*/*") if f.suffix.lower() in IMAGE_SUFFIXES)
        synsets = [file.parent.name for file in files]
    else:
        files = sorted(root.glob(layout.needs[0]))
        # The list is in the order of the images' numbers, which begin with 1.
        truth = dict(enumerate(_tfds_list("validation_labels.txt"), start=1))
        synsets = [truth.get(_number(file), file.name) for file in files]
    return ClassificationSet(LabelledFiles(files, _labels(root, synsets), names), names)


def _tfds_list(name: str) -> tuple[str, ...]:
    """Return the lines of a list that ships with TFDS's imagenet2012."""
    import tensorflow_datasets as tfds

    return read_lines(Path(tfds.core.tfds_path("datasets/imagenet2012"), name))


def _number(file: Path) -> int:
    digits = file.stem.removeprefix("ILSVRC2012_val_")
    return int(digits) if digits.isdecimal() else 0


def _labels(root: Path, found: Sequence[str]) -> list[int]:
    """Return class indices of synsets; classes are in the order of synset ids."""
    index = {synset: i for i, synset in enumerate(_tfds_list("labels.txt"))}
    if unknown := sorted(set(found) - index.keys()):
        raise ValueError(
            f"{root}: {unknown[0]!r} found, expected synsets of ILSVRC 2012 (n01440764, ...) or "
            "its images ILSVRC2012_val_00000001.JPEG to 00050000"
        )
    return [index[synset] for synset in found]


class TfdsImages:
    """A labelled source for a split of the TFDS set imagenet2012."""

    def __init__(self, root: Path, split: str) -> None:
        """Open the folder of the set's version; raise ValueError if it isn't imagenet2012."""
        import tensorflow_datasets as tfds

        self._root = root
        try:
            builder = tfds.builder_from_directory(root)
            skip = {"image": tfds.decode.SkipDecoding()}
            self._examples = builder.as_data_source(split, decoders=skip)
            self._labels = _labels(root, builder.info.features["label"].names)
        except (AttributeError, KeyError, NotImplementedError) as error:
            raise ValueError(f"{root}: expected the TFDS set imagenet2012, got {error}") from error
        self._names = class_names("imagenet")

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Sample:
        name = self._names[self.label(index)]
        return Sample(image=self._examples[index]["image"], captions=[name], key=str(index))

    def label(self, index: int) -> int:
        """Return the class."""
        return self._labels[self._examples[index]["label"]]

    def locate(self, index: int) -> str:
        """Return the set's folder and the image's index."""
        return f"{self._root}, image {index}"
