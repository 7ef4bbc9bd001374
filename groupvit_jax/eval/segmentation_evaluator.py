"""Evaluates segmentation on a set of images with masks."""

import copy
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from groupvit_jax import parallel
from groupvit_jax.data.sources.masks import MaskedSource
from groupvit_jax.data.text.names import first_name
from groupvit_jax.eval import metrics, segmentation
from groupvit_jax.eval.encoding import ImageTower
from groupvit_jax.eval.evaluation_report import Example
from groupvit_jax.eval.inference import ImageOutput, Prepared, WindowEncoder
from groupvit_jax.eval.protocol import Protocol
from groupvit_jax.eval.segment_images import ImageSegmenter, SegmentedImage
from groupvit_jax.eval.segmentation import ImageWindows
from groupvit_jax.eval.windows import round_up_size
from groupvit_jax.typing import Array, Float, Int, Params, UInt8

_MAX_COUNT = 2**31 - 1
_READ_AHEAD = 16
# Called with the number of finished images.
Progress = Callable[[int], None]


class Segmentation:
    """Segments every image of a set into named classes and compares the result with its mask.

    Metrics: `miou`, `pixel_accuracy`, and `iou/CLASS` for every class that occurs.

    Attributes:
      name: prefix of the metrics.
      class_names: the names that images are compared with.
      all_names: the first name of each class, preceded by the background's if there is one.
      source: images with masks.
      protocol: the settings of the evaluation.
      has_background: whether class 0 is painted as background.
      window_encoder: builds the encoder of windows.
    """

    window_encoder: ClassVar[type[WindowEncoder]] = WindowEncoder

    def __init__(
        self,
        encoder: ImageTower,
        source: MaskedSource,
        class_names: Sequence[str],
        protocol: Protocol,
        *,
        name: str = "segmentation",
        windows_at_once: int | None = None,
        background_name: str = "background",
    ) -> None:
        """Set model, data and protocol.

        Args:
          encoder: both towers.
          source: images with masks, whose values index the classes (0 is the background, if there
            is one).
          class_names: names without the background.
          protocol: the settings of the evaluation.
          name: prefix of the metrics.
          windows_at_once: see `WindowEncoder`.
          background_name: name of the background in the results.
        """
        self.name = name
        self._encoder, self.source, self.protocol = encoder, source, protocol
        self.has_background = protocol.has_background
        self.class_names = tuple(class_names)
        shown = map(first_name, class_names)
        self.all_names = (*([background_name] if protocol.has_background else []), *shown)
        self._windows = self.window_encoder(encoder, protocol, windows_at_once=windows_at_once)
        self._count = jax.jit(self._count_images, static_argnums=0)

    def __call__(self, variables: Params) -> dict[str, float]:
        """Return the metrics of one pass over the set."""
        return self.scores(self.confusion(variables))

    def scores(self, confusion: Int[np.ndarray, "N N"]) -> dict[str, float]:
        """Return the metrics of a confusion matrix; see `metrics.named_scores`."""
        return metrics.named_scores(self.all_names, confusion)

    def confusion(
        self, variables: Params, progress: Progress = lambda done: None
    ) -> Int[np.ndarray, "N N"]:
        """Return the confusion matrix of the whole set, in pixels.

        Args:
          variables: the model's parameters and statistics.
          progress: called with the number of this process's finished images.
        """
        return self.sweep(variables, [self.protocol.background_threshold], progress)[0]

    def sweep(
        self,
        variables: Params,
        thresholds: Sequence[float | None],
        progress: Progress = lambda done: None,
    ) -> list[Int[np.ndarray, "N N"]]:
        """Return the confusion matrix at each background threshold, encoding each image once.

        Args:
          variables: the model's parameters and statistics.
          thresholds: in place of the protocol's; None without a background class.
          progress: called with the number of this process's finished images.
        """
        text = self._encoder.class_embeddings(variables, self.class_names, self.protocol.texts)
        counters = [
            _PixelCounter(self._windows, len(self.all_names), self._count, threshold)
            for threshold in thresholds
        ]
        outputs = self._windows(variables, text, self._read())
        for done, (output, mask) in enumerate(outputs, 1):
            for counter in counters:
                counter.add(output, mask)
            progress(done)
        return [parallel.sum_over_processes(counter.total()) for counter in counters]

    def saved(
        self,
        variables: Params,
        keep: Callable[[int, UInt8[np.ndarray, "h w 3"], SegmentedImage], None],
        *,
        groups: bool = False,
        progress: Progress = lambda done: None,
    ) -> Int[np.ndarray, "N N"]:
        """Return the confusion matrix of the masks that `keep` gets, one image at a time.

        Slower than `confusion`, which never moves masks to the host.

        Args:
          variables: the model's parameters and statistics.
          keep: called with index in the set, resized image, and result of each image.
          groups: whether results have groups, which takes another window of each image.
          progress: called with the number of this process's finished images.
        """
        text = self._encoder.class_embeddings(variables, self.class_names, self.protocol.texts)
        windows = self._windows
        if groups:
            size = windows.batch_size
            windows = self.window_encoder(
                self._encoder, windows.protocol, views=True, windows_at_once=size
            )
        segmenter = ImageSegmenter(windows, self.protocol)
        count, mine = len(self.all_names), range(jax.process_index(), len(self.source))
        total = np.zeros((count, count), np.int64)
        outputs = windows(variables, text, self._read(windows))
        # The same part of the set as `_read` yields.
        indices = mine[:: jax.process_count()]
        for done, (index, (output, mask)) in enumerate(zip(indices, outputs, strict=True), 1):
            found = segmenter.finish(output)
            keep(index, output.prepared.pixels, found)
            counted = mask != metrics.IGNORED
            # One number for each pair of true and predicted class.
            cells = mask[counted].astype(np.int64) * count + found.mask[counted]
            total += np.bincount(cells, minlength=count**2).reshape(count, count)
            progress(done)
        return parallel.sum_over_processes(total)

    def with_threshold(self, threshold: float) -> "Segmentation":
        """Return this evaluator with another background threshold, sharing compiled programs."""
        other = copy.copy(self)
        other.protocol = dataclasses.replace(self.protocol, background_threshold=threshold)
        return other

    def examples(self, variables: Params, count: int) -> list[Example]:
        """Segment some images, evenly spaced in the set, for the report."""
        count = min(count, len(self.source))
        indices = np.linspace(0, len(self.source) - 1, count).round().astype(int).tolist()
        pairs = [self.source[i] for i in indices]
        text = self._encoder.class_embeddings(variables, self.class_names, self.protocol.texts)
        segmenter = ImageSegmenter(self._windows, self.protocol)
        segmented = segmenter(variables, text, [image for image, _ in pairs])
        painted = self.all_names, self.has_background
        return [
            Example(image, found.mask, mask, *painted, self.source.locate(i))
            for i, (image, mask), found in zip(indices, pairs, segmented, strict=True)
        ]

    def _read(self, windows: WindowEncoder | None = None) -> Iterator[tuple[Prepared, np.ndarray]]:
        """Yield this process's images and masks, read ahead by threads."""
        prepare = (windows or self._windows).prepare

        def load(index: int) -> tuple[Prepared, np.ndarray]:
            image, mask = self.source[index]
            return prepare(image), mask

        count = len(self.source)
        mine = grain.MapDataset.range(jax.process_index(), count, jax.process_count())
        num_threads = min(_READ_AHEAD, os.cpu_count() or 1)
        yield from mine.map(load).to_iter_dataset(grain.ReadOptions(num_threads, _READ_AHEAD))

    def _count_images(
        self,
        canvas: tuple[int, int],
        threshold: Float[Array, ""] | None,
        arrays: Any,
        classes: Any,
        mask: Any,
    ) -> Int[Array, "N N"]:
        """Count the pixels of one image per device."""

        def count(
            arrays: ImageWindows, classes: Int[Array, "1 K"], mask: UInt8[Array, "1 H W"]
        ) -> Int[Array, "N N"]:
            scores = segmentation.segment(
                jax.tree.map(lambda rows: rows[0], arrays),  # a device's only image
                canvas=canvas,
                patch_size=self._windows.patch_size,
                protocol=self.protocol,
                mixture=self._windows.mixture,
                threshold=threshold,
            )
            prediction = classes[0][scores.argmax(-1)]  # of K kept classes -> of all
            present = jnp.ones(1, bool)  # padding is ignored in the mask
            counts = metrics.confusion_matrix(mask, prediction[None], present, len(self.all_names))
            return jax.lax.psum(counts, axis)

        (axis,) = self._windows.mesh.axis_names
        specs = PartitionSpec(axis)
        split = jax.shard_map(
            count,
            mesh=self._windows.mesh,
            in_specs=specs,
            out_specs=PartitionSpec(),
            check_vma=False,  # only the counts are replicated
        )
        return split(arrays, classes, mask)


class _PixelCounter:
    """Joins the windows of images and counts their pixels, one image per device."""

    def __init__(
        self,
        windows: WindowEncoder,
        num_classes: int,
        count: Callable[..., Any],
        threshold: float | None,
    ) -> None:
        self._windows, self._count = windows, count
        self._threshold = None if threshold is None else np.float32(threshold)
        self._waiting: dict[Any, list[Any]] = {}
        self._on_device: Any = None
        self._pixels_on_device = 0
        self._total = np.zeros((num_classes, num_classes), np.int64)

    def add(self, output: ImageOutput, mask: np.ndarray) -> None:
        """Add an image; count a bucket as soon as it holds one image per device."""
        arrays = output.arguments(self._windows.protocol, self._windows.patch_size)
        # To one of few sizes; the margins don't count.
        margins = [(0, p - s) for p, s in zip(round_up_size(mask.shape), mask.shape, strict=True)]
        mask = np.pad(mask, margins, constant_values=metrics.IGNORED)
        classes = output.classes
        if self._windows.protocol.has_background:
            classes = np.concatenate([[0], classes + 1])
        layout = output.prepared.layout
        # Of one bucket all arrays have one shape, so they can be stacked.
        bucket = (layout.encoded, layout.canvas, mask.shape)
        queue = self._waiting.setdefault(bucket, [])
        queue.append((arrays, classes.astype(np.int32), mask))
        if len(queue) == self._windows.mesh.size:
            self._count_waiting(bucket)

    def total(self) -> Int[np.ndarray, "N N"]:
        """Return the counts of all images."""
        for bucket in self._waiting:
            self._count_waiting(bucket)
        self._fetch()
        return self._total

    def _count_waiting(self, bucket: Any) -> None:
        images, self._waiting[bucket] = self._waiting[bucket], []
        if not images:
            return
        arrays, classes, mask = images[-1]
        # Fills up the devices; where everything is ignored, nothing is counted.
        nothing = (arrays, classes, np.full_like(mask, metrics.IGNORED))
        images = [*images, *[nothing] * (self._windows.mesh.size - len(images))]
        batch = jax.tree.map(lambda *rows: np.stack(rows), *images)
        # In the worst case all pixels fall into one cell.
        if self._pixels_on_device + batch[2].size > _MAX_COUNT:
            self._fetch()
        _, canvas, _ = bucket
        batch = jax.device_put(batch, self._windows.sharding)
        counts = self._count(canvas, self._threshold, *batch)
        self._on_device = counts if self._on_device is None else self._on_device + counts
        self._pixels_on_device += batch[2].size

    def _fetch(self) -> None:
        """Move counts from the device to the host before an int32 can overflow."""
        if self._on_device is not None:
            self._total += np.asarray(self._on_device)
        self._on_device, self._pixels_on_device = None, 0
