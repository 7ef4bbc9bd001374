"""Measures any other model by the protocols' metrics and background rules.

    from groupvit_jax import evaluate
    evaluate(lambda image: my_model(image), "voc", "data")["miou"]

The model's own resizing and windows are its own affair: what is shared with `Segmentation` is the
reading of the sets, the background, and the counting of pixels at the photos' size.
"""

import concurrent.futures
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np

from groupvit_jax import parallel
from groupvit_jax.data.eval_sets import NAMES, SegmentationSet, open_benchmark
from groupvit_jax.data.eval_sets.mask_values import MASK_SUFFIXES, read_values
from groupvit_jax.data.sources.masks import IGNORED, MaskedSource
from groupvit_jax.eval import metrics
from groupvit_jax.eval.evaluation_report import Example
from groupvit_jax.eval.protocol import Protocol, make_protocol
from groupvit_jax.foreign import naming
from groupvit_jax.typing import Bool, Float, Int

_READ_AHEAD = 16
# (image) -> labels [H, W] or scores [N, h, w].
Predict = Callable[[Any], Any]


def evaluate(
    predict: Predict,
    benchmark: str | os.PathLike | SegmentationSet,
    data_dir: str | os.PathLike = "data",
    *,
    protocol: str = "groupvit",
    background_threshold: float | None = None,
) -> dict[str, float]:
    """Measure a function that segments images.

    Args:
      predict: maps UInt8 [H, W, 3] to labels, integers [H, W], of `all_names` (0 is the background,
        if the set has one); or to scores of N classes, [N, h, w] of any size, resized bilinearly to
        the photo. With N names, the highest score is the label. With one fewer, the background is
        left to the protocol's rule, for scores from 0 to 1: with "tcl" it scores the threshold
        everywhere; with "groupvit" it is where no class reaches the threshold or, if that is lower,
        the best score in the image.
      benchmark: the name of a set, a folder or description of one's own, or a set that is open.
      data_dir: the folder that holds sets.
      protocol: a key of `PROTOCOLS`: class names, background rule and threshold.
      background_threshold: by default the set's own or the protocol's.

    Returns:
      `miou`, `pixel_accuracy` and `iou/CLASS`, 0 to 1.

    Raises:
      ValueError: the set or a prediction can't be used.
      FileNotFoundError: files of the set are missing.
    """
    name = "folder" if isinstance(benchmark, SegmentationSet) else os.fspath(benchmark)
    if isinstance(benchmark, SegmentationSet):
        opened: Any = benchmark
    elif name in NAMES:
        opened = open_benchmark(name, data_dir)
    else:
        opened = open_benchmark("folder", name)
        name = "folder"
    evaluator = predictions_of(opened, name, predict, protocol, background_threshold)
    return evaluator.scores(evaluator.confusion())


def predictions_of(
    opened: Any,
    name: str,
    predict: "Predict | PredictedMasks",
    protocol: str = "groupvit",
    background_threshold: float | None = None,
) -> "Predictions":
    """Return the evaluator of a set that is open; for arguments and errors see `evaluate`."""
    if not isinstance(opened, SegmentationSet):
        raise ValueError(f"{name}: a set without masks found, expected one to segment")
    own = opened.background_threshold if background_threshold is None else background_threshold
    if not opened.has_background:
        own = None
    chosen = make_protocol(
        protocol, name, has_background=opened.has_background, background_threshold=own
    )
    return Predictions(opened.source, opened.all_names, chosen, predict, name=name)


class Predictions:
    """Compares predicted labels or scores with the masks of a set.

    Attributes:
      name: of the set.
      source: images with masks.
      all_names: names of the labels.
      protocol: has the background's rule and threshold.
      has_background: whether label 0 is the background.
    """

    def __init__(
        self,
        source: MaskedSource,
        all_names: Sequence[str],
        protocol: Protocol,
        predict: "Predict | PredictedMasks",
        *,
        name: str = "segmentation",
    ) -> None:
        """Take the set, and what predicts: a function, or masks on the disk."""
        self.name, self.source, self.all_names = name, source, tuple(all_names)
        self.protocol, self.has_background = protocol, protocol.has_background
        self._predict = predict

    def scores(self, confusion: Int[np.ndarray, "N N"]) -> dict[str, float]:
        """Return the metrics of a confusion matrix; see `metrics.named_scores`."""
        return metrics.named_scores(self.all_names, confusion)

    def confusion(self, progress: Callable[[int], None] = lambda done: None) -> Any:
        """Return pixels by true class (rows) and predicted class (columns).

        Args:
          progress: called with the number of this process's finished images.
        """
        count = len(self.all_names)
        total = np.zeros((count, count), np.int64)
        mine = range(jax.process_index(), len(self.source), jax.process_count())
        for done, (index, (image, mask)) in enumerate(self._read(mine), 1):
            found = self._labels(index, image)
            counted = mask != IGNORED
            # One number for each pair of true and predicted class.
            cells = mask[counted].astype(np.int64) * count + found[counted]
            total += np.bincount(cells, minlength=count**2).reshape(count, count)
            progress(done)
        return parallel.sum_over_processes(total)

    def examples(self, variables: Any, count: int) -> list[Example]:
        """Return some images, evenly spaced in the set, with their predictions."""
        del variables  # as `Segmentation.examples` takes them
        count = min(count, len(self.source))
        indices = np.linspace(0, len(self.source) - 1, count).round().astype(int).tolist()
        painted = self.all_names, self.has_background
        return [
            Example(image, self._labels(i, image), mask, *painted, self.source.locate(i))
            for i, (image, mask) in self._read(indices)
        ]

    def _read(self, indices: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """Yield images and masks in order, a few read ahead by threads."""
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            # In portions: `pool.map` over all indices would read the whole set ahead.
            for start in range(0, len(indices), _READ_AHEAD):
                some = indices[start : start + _READ_AHEAD]
                yield from zip(some, pool.map(self.source.__getitem__, some), strict=True)

    def _labels(self, index: int, image: np.ndarray) -> Int[np.ndarray, "H W"]:
        if isinstance(self._predict, PredictedMasks):
            return self._predict(index, image.shape[:2], len(self.all_names))
        found = np.asarray(self._predict(image))
        where, names = self.source.locate(index), len(self.all_names)
        if found.ndim == 2 and np.issubdtype(found.dtype, np.integer):
            return checked_labels(found, image.shape[:2], names, where)
        sizes = {names, names - self.has_background}
        if found.ndim != 3 or len(found) not in sizes or not np.isfinite(found).all():
            expected = " or ".join(map(str, sorted(sizes)))
            raise ValueError(
                f"prediction for {where}: {found.dtype} of shape {found.shape} found, expected "
                f"integers {image.shape[:2]} or finite scores [{expected}, H, W]"
            )
        return labels_of_scores(found, image.shape[:2], self.protocol, len(found) < names)


def labels_of_scores(
    scores: Float[np.ndarray, "N h w"],
    size: tuple[int, int],
    protocol: Protocol,
    add_background: bool,
) -> Int[np.ndarray, "H W"]:
    """Return the label of each pixel of a photo; see `evaluate` for the background.

    Args:
      scores: of the classes.
      size: height and width of the photo.
      protocol: the background's rule and threshold.
      add_background: whether label 0 is the background, which has no scores.
    """
    H, W = size
    values = np.asarray(scores, np.float32)
    if values.shape[1:] != size:
        values = np.stack([cv2.resize(v, (W, H), interpolation=cv2.INTER_LINEAR) for v in values])
    labels = values.argmax(axis=0)
    if not add_background:
        return labels
    best, threshold = values.max(axis=0), np.float32(protocol.background_threshold or 0)
    background: Bool[np.ndarray, "H W"] = best < min(threshold, best.max())
    if protocol.background_rule == "constant":
        background = best <= threshold  # of equal scores the first counts, the background's
    return np.where(background, 0, labels + 1)


def checked_labels(
    labels: np.ndarray, size: tuple[int, int], count: int, where: str
) -> Int[np.ndarray, "H W"]:
    """Return the labels; a ValueError says what is wrong with them."""
    if labels.shape != size:
        raise ValueError(f"prediction for {where}: {labels.shape} found, expected {size} pixels")
    if labels.size and not 0 <= labels.min() <= labels.max() < count:
        raise ValueError(
            f"prediction for {where}: labels {labels.min()} to {labels.max()} found, expected 0 to "
            f"{count - 1}, the numbers of the set's classes"
        )
    return labels.astype(np.int64)


class PredictedMasks:
    """Masks on the disk, an index of the set's names for each pixel."""

    def __init__(self, folder: Path, source: MaskedSource) -> None:
        """Find the mask of each photo: the photo's path below the set's photos, or its name alone.

        Raises:
          FileNotFoundError: the mask of a photo is missing.
        """
        if not folder.is_dir():
            raise FileNotFoundError(f"--predictions={folder}: no such folder")
        self._files: list[Path] = []
        missing = []
        for name in photo_names(source):
            places = [folder / f"{n}{s}" for n in (name, Path(name).name) for s in MASK_SUFFIXES]
            if found := next((place for place in places if place.is_file()), None):
                self._files.append(found)
            else:
                missing.append(name)
        if missing:
            raise FileNotFoundError(
                f"--predictions={folder}: {len(missing)} of {len(source)} photos have no mask, the "
                f"first {missing[0]}.png"
            )

    def files(self) -> list[Path]:
        """Return the masks in the order of the photos."""
        return self._files

    def __call__(self, index: int, size: tuple[int, int], count: int) -> Int[np.ndarray, "H W"]:
        """Return the labels of a photo."""
        file = self._files[index]
        with naming(file):
            return checked_labels(read_values(file, size), size, count, str(file))


def photo_names(source: Any) -> list[str]:
    """Return what files about each photo are called: its path below all photos, without ending."""
    places = [source.locate(i) for i in range(len(source))]
    if not places or not Path(places[0]).is_file():
        return [f"{i:06d}" for i in range(len(places))]  # in a file of many images
    root = os.path.commonpath([os.path.dirname(place) for place in places])
    return [str(Path(os.path.relpath(place, root)).with_suffix("")) for place in places]
