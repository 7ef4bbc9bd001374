"""Segments many images of any size, with batches that mix windows of different images.

The image tower sees batches of one static shape and is compiled once; for the rare images with a
side shorter than a window it is compiled again for each number of patches along that side. The
cheap remainder is compiled per bucket of image sizes.
"""

import collections
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from groupvit_jax import parallel
from groupvit_jax.eval import segmentation
from groupvit_jax.eval.encoding import ImageTower
from groupvit_jax.eval.protocol import Protocol
from groupvit_jax.eval.segmentation import ImageWindows, WindowFeatures
from groupvit_jax.eval.windows import (
    Layout,
    Window,
    lay_out,
    resampling,
    resize_to_fit,
    round_up_size,
)
from groupvit_jax.typing import Array, Float, Int, Params, UInt8

_WINDOWS_AT_ONCE = 16  # windows per accelerator; a CPU is as fast with one
# Images that may wait for an earlier one whose windows don't fill a batch yet.
_MAX_WAITING = 256


class Prepared(NamedTuple):
    """A resized image with the layout of its windows.

    Attributes:
      pixels: the image, resized according to the protocol.
      layout: the layout of its windows.
      size: original height and width.
      view: the whole image as one window, ignoring its aspect ratio; for pictures of groups.
    """

    pixels: UInt8[np.ndarray, "h w 3"]
    layout: Layout
    size: tuple[int, int]
    view: UInt8[np.ndarray, "s s 3"] | None = None


class WindowOutput(NamedTuple):
    """The results of each window that are kept on the host.

    Attributes:
      maps: soft assignments of patches to groups, one array per grouping stage.
      classes: the classes kept for the window, in any order.
      scores: scores of these classes for each group of the last stage.
      embeddings: joint embeddings of these groups, not normalised, where views are encoded too;
        None for a segment head, which has no joint space.
    """

    maps: tuple[Float[np.ndarray, "*batch h w _"], ...]
    classes: Int[np.ndarray, "*batch K"]
    scores: Float[np.ndarray, "*batch G K"]
    embeddings: Float[np.ndarray, "*batch G D"] | None = None


class ImageOutput(NamedTuple):
    """The encoded windows of one image.

    Attributes:
      prepared: the image.
      maps: soft assignments of each window's patches to the groups of the last stage.
      scores: scores of each window's groups for the same K classes in all windows.
      classes: indices of these classes, ascending, padded with -1.
      view: results for the whole image as one window, if requested.
    """

    prepared: Prepared
    maps: Float[np.ndarray, "V h w G"]
    scores: Float[np.ndarray, "V G K"]
    classes: Int[np.ndarray, " K"]
    view: WindowOutput | None

    def arguments(self, protocol: Protocol, patch_size: int) -> ImageWindows:
        """Return the arguments of `segmentation.segment`, with tables of the padded size."""
        layout, size = self.prepared.layout, self.prepared.size
        padded = round_up_size(size)
        rows, columns = (
            resampling(old, new, length)
            for old, new, length in zip(layout.size, size, padded, strict=True)
        )
        pixels = None
        if protocol.pamr_iterations:
            margins = [(0, c - s) for c, s in zip(layout.canvas, layout.size, strict=True)]
            # "edge": PAMR repeats the outermost pixels beyond an image's border.
            pixels = np.pad(self.prepared.pixels, (*margins, (0, 0)), mode="edge")
        stretches = tuple(layout.stretches(patch_size))
        window, here = np.array(layout.window, np.int32), np.array(layout.size, np.int32)
        arrays: Any = (self.maps, self.scores, layout.corners, stretches, window)
        arrays += (rows, columns, here, pixels)
        return ImageWindows(*arrays)


class _Pending:
    """An image with windows that are not encoded yet."""

    def __init__(self, prepared: Prepared, tag: Any) -> None:
        self.prepared, self.tag = prepared, tag
        self.windows = prepared.layout.cut(prepared.pixels)
        if prepared.view is not None:
            self.windows.append(Window(prepared.view, prepared.view.shape[:2]))
        self.outputs: list[WindowOutput | None] = [None] * len(self.windows)

    @property
    def done(self) -> bool:
        return all(output is not None for output in self.outputs)


class WindowEncoder:
    """Encodes the windows of many images in batches of one shape on this process's devices.

    Every process works on its own images and never waits for another process.

    Attributes:
      mixture: see `segmentation.segment`.
      patch_size: side of a patch.
    """

    mixture = False

    def __init__(
        self,
        encoder: ImageTower,
        protocol: Protocol,
        *,
        views: bool = False,
        windows_at_once: int | None = None,
    ) -> None:
        """Prepare the encoder; compilation happens at the first use.

        Args:
          encoder: both towers.
          protocol: the settings of the evaluation.
          views: also encode each whole image as one window, for its groups.
          windows_at_once: windows per batch, rounded up to a multiple of the devices; by default
            1 per CPU device and 16 per accelerator.
        """
        self.encoder, self.protocol, self._views = encoder, protocol, views
        self.mesh = parallel.local_mesh(encoder.mesh)
        per_device = 1 if jax.default_backend() == "cpu" else _WINDOWS_AT_ONCE
        wanted = windows_at_once or per_device * self.mesh.size
        self.batch_size = -(-wanted // self.mesh.size) * self.mesh.size
        self.sharding = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))
        self.patch_size = encoder.model.image_encoder.patch_size
        self._encode = _compiled_towers(encoder, self.sharding, views)
        # Separate from the tower, which need not be recompiled for another number of classes.
        self._classify = jax.jit(
            functools.partial(segmentation.class_scores, num_kept=protocol.num_kept),
            out_shardings=self.sharding,
        )

    def prepare(self, image: UInt8[np.ndarray, "H W 3"]) -> Prepared:
        """Resize an image on the host and compute the layout of its windows."""
        resize, patch = self.protocol.resize, self.patch_size
        pixels = resize_to_fit(image, resize) if resize else image
        side = -(-self.protocol.window // patch) * patch
        view = cv2.resize(pixels, (side, side)) if self._views else None
        layout = lay_out(pixels.shape[:2], self.protocol, patch)
        return Prepared(pixels, layout, image.shape[:2], view)

    def __call__(
        self,
        variables: Params,
        text: Float[Any, "N *names D"],
        images: Iterable[tuple[Prepared, Any]],
    ) -> Iterator[tuple[ImageOutput, Any]]:
        """Yield encoded images in order.

        Args:
          variables: the model's parameters and statistics, sharded in any way.
          text: normalised class embeddings.
          images: prepared images, each with a payload that is returned with its output.
        """
        variables = parallel.local_copies(self.encoder.mesh, variables)
        text = jax.device_put(text, parallel.replicated(self.mesh))
        run = _Run(functools.partial(self._encode_batch, variables, text), self.batch_size)
        for prepared, tag in images:
            run.add(_Pending(prepared, tag))
            for done in run.finished():
                yield _join(done, len(text)), done.tag
        run.flush()
        for done in run.finished():
            yield _join(done, len(text)), done.tag

    def _encode_batch(self, variables: Params, text: Array, windows: Sequence[Window]) -> Any:
        missing = self.batch_size - len(windows)
        # Always a whole batch: one shape is compiled. `_collect` passes over the repeated ones.
        batch = [*windows, *[windows[-1]] * missing]
        pixels, inside = np.stack([each.pixels for each in batch]), [each.inside for each in batch]
        arrays = jax.device_put((pixels, np.array(inside, np.int32)), self.sharding)
        return self._classified(variables, text, *arrays)

    def _classified(
        self, variables: Params, text: Array, windows: Array, inside: Array
    ) -> WindowOutput:
        """Start the computation and return its device arrays."""
        image, groups, maps = self._encode(variables, windows, inside)
        scale = variables["params"]["logit_scale"]
        classes, scores = self._classify(image, groups, text, scale)
        return WindowOutput(maps, classes, scores, groups if self._views else None)


@functools.lru_cache(maxsize=4)
def _compiled_towers(encoder: ImageTower, sharding: NamedSharding, views: bool) -> Any:
    """Return the jitted image tower, shared by all sets evaluated with an encoder."""

    def encode(
        variables: Params, windows: UInt8[Array, "B H W 3"], inside: Int[Array, "B 2"]
    ) -> WindowFeatures:
        features = segmentation.encode_windows(encoder.model, variables, windows, inside)
        # Only the last stage's maps go to the host, unless the groups of all are wanted.
        return features if views else features._replace(maps=features.maps[-1:])

    return jax.jit(encode, out_shardings=sharding)


class _Run:
    """Batches windows of equal size, keeps one batch in flight, and restores the image order."""

    def __init__(self, encode: Any, batch_size: int) -> None:
        self._encode, self._batch_size = encode, batch_size
        self._queues: dict[tuple[int, ...], list[tuple[_Pending, int]]] = {}
        self._in_flight: collections.deque[Any] = collections.deque()
        self._waiting: collections.deque[_Pending] = collections.deque()

    def add(self, pending: _Pending) -> None:
        """Add an image, and encode the batches that it fills."""
        self._waiting.append(pending)
        for number, window in enumerate(pending.windows):
            queue = self._queues.setdefault(window.pixels.shape, [])
            queue.append((pending, number))
            if len(queue) == self._batch_size:
                self._dispatch(window.pixels.shape)
        if len(self._waiting) > _MAX_WAITING:
            self.flush()

    def finished(self) -> Iterator[_Pending]:
        """Yield finished images in order."""
        while self._waiting and self._waiting[0].done:
            yield self._waiting.popleft()

    def flush(self) -> None:
        """Encode the pending windows."""
        for shape, queue in self._queues.items():
            if queue:
                self._dispatch(shape)
        while self._in_flight:
            self._collect()

    def _dispatch(self, shape: tuple[int, ...]) -> None:
        rows, self._queues[shape] = self._queues[shape], []
        output = self._encode([pending.windows[number] for pending, number in rows])
        self._in_flight.append((output, rows))
        if len(self._in_flight) > 1:  # the devices compute one batch while the host fills the next
            self._collect()

    def _collect(self) -> None:
        output, rows = self._in_flight.popleft()
        arrays = jax.device_get(output)
        for row, (pending, number) in enumerate(rows):
            pending.outputs[number] = jax.tree.map(lambda a, i=row: a[i], arrays)


def _join(pending: _Pending, num_classes: int) -> ImageOutput:
    """Stack the outputs of an image's windows, over the union of their classes."""
    outputs = [output for output in pending.outputs if output is not None]
    view = outputs.pop() if pending.prepared.view is not None else None
    kept = np.stack([output.classes for output in outputs])
    found = np.unique(kept)
    # By the number of windows, not of classes found: each number would compile anew.
    num_slots = min(kept.size, num_classes)
    scores = np.zeros((len(outputs), outputs[0].scores.shape[0], num_slots), np.float32)
    scores[..., len(found) :] = -1  # never the maximum
    for of_window, output in zip(scores, outputs, strict=True):
        # A class that a window didn't keep scores 0 in it.
        of_window[:, np.searchsorted(found, output.classes)] = output.scores
    return ImageOutput(
        pending.prepared,
        np.stack([output.maps[-1] for output in outputs]),
        scores,
        np.pad(found, (0, num_slots - len(found)), constant_values=-1),
        view,
    )
