"""Segments single images of any size, and returns their groups."""

import copy
import dataclasses
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from groupvit_jax.eval import segmentation
from groupvit_jax.eval.inference import ImageOutput, WindowEncoder
from groupvit_jax.eval.protocol import Protocol
from groupvit_jax.eval.windows import Resampling, resampling, round_up_size
from groupvit_jax.typing import Array, Float, Int, Params, UInt8


class SegmentedImage(NamedTuple):
    """An image's segmentation.

    Attributes:
      mask: class of every pixel; a background class is 0, and the others follow.
      scores: scores of the K classes kept by any window, for every pixel.
      classes: indices of these classes in `mask`, ascending; all others score 0.
      groups: the group of every pixel, one array per grouping stage, from the whole image as one
        window; empty without views.
      group_maps: the soft assignments behind them, of the patches of that square window, whatever
        the image's aspect ratio; they sum to one over the groups.
      group_features: the last stage's groups of `groups`: joint embeddings, not normalised, or
        class probabilities of a segment head; None without views.
    """

    mask: Int[np.ndarray, "H W"]
    scores: Float[np.ndarray, "H W K"]
    classes: Int[np.ndarray, " K"]
    groups: tuple[Int[np.ndarray, "H W"], ...]
    group_maps: tuple[Float[np.ndarray, "h w _"], ...] = ()
    group_features: Float[np.ndarray, "G _"] | None = None


class ImageSegmenter:
    """Segments a stream of images; windows of several images share batches."""

    def __init__(self, windows: WindowEncoder, protocol: Protocol | None = None) -> None:
        """Take the encoder of windows.

        Args:
          windows: encodes views if the groups are wanted too.
          protocol: the encoder's by default, or that with another background threshold.
        """
        self.protocol, self._windows = protocol or windows.protocol, windows
        self._scores = jax.jit(
            segmentation.segment, static_argnames=("canvas", "patch_size", "protocol", "mixture")
        )

    def with_threshold(self, threshold: float | None) -> "ImageSegmenter":
        """Return a segmenter with another background threshold, or None for no background.

        It shares the compiled programs: thresholds are arguments of the program, so only switching
        the background on or off compiles again.
        """
        other = copy.copy(self)
        other.protocol = dataclasses.replace(self.protocol, background_threshold=threshold)
        return other

    def __call__(
        self,
        variables: Params,
        text: Float[np.ndarray, "N *names D"],
        images: Iterable[UInt8[np.ndarray, "_ _ 3"]],
    ) -> Iterator[SegmentedImage]:
        """Yield the segmentation of each image, in order.

        Args:
          variables: the model's parameters and statistics.
          text: normalised class embeddings, without background.
          images: of any sizes.
        """
        prepared = ((self._windows.prepare(image), None) for image in images)
        for output, _ in self._windows(variables, text, prepared):
            yield self.finish(output)

    def finish(self, output: ImageOutput) -> SegmentedImage:
        """Return the segmentation of an image whose windows are encoded."""
        layout, (H, W) = output.prepared.layout, output.prepared.size
        # The protocol is static: with its own threshold, each value would be another program.
        threshold, static = self.protocol.background_threshold, self.protocol
        if threshold is not None:
            static = dataclasses.replace(static, background_threshold=1.0)
        patch_size = self._windows.patch_size
        padded = self._scores(
            output.arguments(self.protocol, patch_size),
            canvas=layout.canvas,
            patch_size=patch_size,
            protocol=static,
            mixture=self._windows.mixture,
            threshold=threshold,
        )
        classes = output.classes[output.classes >= 0]
        if self.protocol.has_background:
            # The background is class 0, so the others move up.
            classes = np.concatenate([[0], classes + 1])
        # Canvas and number of classes are those of the program, which many images share.
        scores = np.asarray(padded)[:H, :W, : len(classes)]
        mask = classes[scores.argmax(-1)].astype(np.int32)
        maps = output.view.maps if output.view is not None else ()
        groups, features = self._groups(output), _features(output)
        return SegmentedImage(mask, scores, classes, groups, maps, features)

    def _groups(self, output: ImageOutput) -> tuple[Int[np.ndarray, "H W"], ...]:
        """Resize the groups of the whole-image view to the image."""
        if output.view is None:
            return ()
        assert output.prepared.view is not None
        size, side = output.prepared.size, len(output.prepared.view)
        tables = [
            resampling(side, new, padded, self._windows.patch_size)
            for new, padded in zip(size, round_up_size(size), strict=True)
        ]
        groups = jax.device_get([_likeliest(maps, *tables) for maps in output.view.maps])
        return tuple(of_pixel[: size[0], : size[1]] for of_pixel in groups)


def _features(output: ImageOutput) -> Float[np.ndarray, "G _"] | None:
    """Return the features by which the groups of the whole-image view are named."""
    if output.view is None:
        return None
    return output.view.scores if output.view.embeddings is None else output.view.embeddings


@jax.jit
def _likeliest(
    maps: Float[Array, "h w G"], rows: Resampling, columns: Resampling
) -> Int[Array, "H W"]:
    return segmentation.resample(maps, rows, columns).argmax(-1)
