"""The one class that people use for inference: any image, any labels.

segmenter = Segmenter.from_pretrained("path")
result = segmenter("photo.jpg", ["dog", "grass", "frisbee"])
result.mask, result.scores, result.groups, result.overlay()

A model with a segment head has labels of its own: segmenter("photo.jpg").
"""

import collections
import copy
import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from groupvit_jax import parallel
from groupvit_jax.data.images.decode import MAX_PIXELS
from groupvit_jax.data.images.photo import read_photo
from groupvit_jax.data.text.names import check_known
from groupvit_jax.data.text.tokenizers import make_tokenizer
from groupvit_jax.eval.encoding import Prompts
from groupvit_jax.eval.evaluators import make_encoder
from groupvit_jax.eval.head_segmentation import HeadTower, HeadWindowEncoder, head_protocol
from groupvit_jax.eval.inference import WindowEncoder
from groupvit_jax.eval.protocol import Protocol, make_protocol
from groupvit_jax.eval.segment_images import ImageSegmenter
from groupvit_jax.interop.load import load_pretrained
from groupvit_jax.interop.pretrained import Pretrained
from groupvit_jax.report import visualize
from groupvit_jax.typing import Float, Int, UInt8

BACKGROUND = "background"
_LABEL_LISTS_KEPT = 16

RgbImage = UInt8[np.ndarray, "H W 3"]


@dataclasses.dataclass(frozen=True)
class SegmentationResult:
    """A segmented image, in the size and orientation in which people see it.

    Attributes:
      image: the pixels that were segmented.
      mask: for every pixel the index of its label in `labels`.
      labels: with a background, that is the first.
      scores: of the K labels that were likely anywhere in the image; see `score`.
      classes: the indices of these labels, ascending.
      groups: for each grouping stage, the group of every pixel.
      has_background: whether label 0 is the background.
      group_maps: for each grouping stage the soft assignment to its groups, of the patches of the
        whole image as one square window; sums to one over the groups.
      group_features: what `Segmenter.name_groups` compares: joint embeddings of the last stage's
        groups, or class probabilities of a segment head.
    """

    image: UInt8[np.ndarray, "H W 3"]
    mask: Int[np.ndarray, "H W"]
    labels: tuple[str, ...]
    scores: Float[np.ndarray, "H W K"]
    classes: Int[np.ndarray, " K"]
    groups: tuple[Int[np.ndarray, "H W"], ...]
    has_background: bool = False
    group_maps: tuple[Float[np.ndarray, "h w _"], ...] = ()
    group_features: Float[np.ndarray, "G _"] | None = None

    @property
    def probabilities(self) -> Float[np.ndarray, "H W N"]:
        """Return scores divided by their sum, so that they sum to one over the labels.

        The label with the highest is that of the mask. They are shares of the protocol's scores and
        not calibrated: 0.7 doesn't say that 70 % of such pixels are right.
        """
        scores = np.zeros((*self.mask.shape, len(self.labels)), np.float32)
        # Labels that no window kept have no column in `scores`, and padding scores -1.
        scores[..., self.classes] = np.maximum(self.scores, 0)
        total = scores.sum(axis=-1, keepdims=True)
        return np.where(total > 0, scores / np.where(total > 0, total, 1), 1 / len(self.labels))

    def score(self, label: str) -> Float[np.ndarray, "H W"]:
        """Return a label's score at every pixel; 0 if it was likely nowhere.

        Raises:
          ValueError: it is none of the labels.
        """
        if label not in self.labels:
            raise ValueError(f"label: {label!r} found, expected one of {list(self.labels)}")
        column = np.flatnonzero(self.classes == self.labels.index(label))
        return self.scores[..., column].sum(axis=-1)  # none sums to 0

    def shares(self) -> dict[str, float]:
        """Return the share of the pixels of each label that has any, the largest first."""
        counts = np.bincount(self.mask.ravel(), minlength=len(self.labels))
        order = np.argsort(-counts, kind="stable")
        return {self.labels[i]: float(counts[i] / self.mask.size) for i in order if counts[i]}

    @property
    def colours(self) -> UInt8[np.ndarray, "N 3"]:
        """Of the labels; a label has the same with and without a background, which is black."""
        if not self.has_background:
            return visualize.palette(len(self.labels))
        black = np.zeros((1, 3), np.uint8)
        return np.concatenate([black, visualize.palette(len(self.labels) - 1)])

    def overlay(self, names: bool = True) -> RgbImage:
        """Return the image with its labels painted over, the background grey.

        Args:
          names: whether the labels are written at their regions.
        """
        background = 0 if self.has_background else None
        painted = visualize.overlay(self.image, self.mask, self.colours, background=background)
        if not names:
            return painted
        written = ["", *self.labels[1:]] if self.has_background else self.labels
        return visualize.write_names(painted, self.mask, written)

    def side_by_side(self) -> UInt8[np.ndarray, "h w 3"]:
        """Return the image and, beside or below it, its segmentation."""
        return visualize.side_by_side({"image": self.image, "segmentation": self.overlay()})

    def overlay_groups(self) -> UInt8[np.ndarray, "h w 3"]:
        """Return the image and the groups of each stage, painted over it."""
        pictures = {"image": self.image}
        for stage, groups in enumerate(self.groups, 1):
            colours = visualize.palette(int(groups.max()) + 1)
            title = f"stage {stage}: {len(np.unique(groups))} groups"
            pictures[title] = visualize.overlay(self.image, groups, colours)
        return visualize.side_by_side(pictures)


class Segmenter:
    """Segments images into any labels; the model is compiled at the first image.

    Attributes:
      protocol: how images are cut into windows and compared with labels.
      class_names: the only labels of a model with a segment head; () of others.
    """

    def __init__(
        self,
        pretrained: Pretrained,
        *,
        protocol: str = "groupvit",
        background: bool | float = False,
        prompts: Prompts | None = None,
        other_prompts: bool = False,
        windows_at_once: int | None = None,
        megapixels: float = MAX_PIXELS / 1e6,
        **knobs: Any,
    ) -> None:
        """Put a model on this process's devices.

        Args:
          pretrained: the model; `from_pretrained` reads it.
          protocol: of `eval.protocol.PROTOCOLS`; its windows, made for images of 224 pixels in
            training, are scaled to those of this model. A segment head has windows of its own
            training's size, and knows no other protocol, background, prompts or kept labels.
          background: whether pixels may have none of the labels; a number is the threshold that a
            label's score has to reach, 0 to 1.
          prompts: texts with one `{}` for a label, whose embeddings are averaged; by default those
            of the protocol. Or such texts by label, with "" for all others.
          other_prompts: whether prompts may be of labels that an image isn't segmented into; as
            these may be misspelt, they are an error by default.
          windows_at_once: how many windows go through the model at once.
          megapixels: of the largest file; arrays may have any size that the memory holds.
          **knobs: further fields of `eval.protocol.Protocol`, e.g. `pamr_iterations=10`.

        Raises:
          ValueError: naming the argument, if its value can't be.
          TypeError: there is no such knob.
        """
        pretrained.check_finite()
        config, self.class_names = pretrained.model_config, pretrained.class_names
        image_size, knobs = config.image.image_size, {"prompts": prompts, **knobs}
        # This process's devices only: a segmenter never waits for other processes.
        mesh = parallel.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, jax.local_devices())
        tokenizer = make_tokenizer(pretrained.tokenizer, config.text.context_length)
        encoder = make_encoder(pretrained.build_model(), tokenizer, self.class_names, mesh)
        of_windows: dict[str, Any] = {"views": True, "windows_at_once": windows_at_once}
        if isinstance(encoder, HeadTower):
            if background is not False:
                raise ValueError(f"background={background}: a segment head has learnt its own")
            self.protocol = head_protocol(image_size, protocol=protocol, **knobs)
            self._has_background = encoder.has_background
            windows: WindowEncoder = HeadWindowEncoder(encoder, self.protocol, **of_windows)
        else:
            self.protocol = _make_protocol(protocol, image_size, background, **knobs)
            self._has_background = self.protocol.has_background
            windows = WindowEncoder(encoder, self.protocol, **of_windows)
        self._encoder, self._segment = encoder, ImageSegmenter(windows)
        self._max_pixels = int(megapixels * 1e6)
        self._own_prompts = () if other_prompts else tuple(dict(self.protocol.class_prompts))
        self._variables = jax.device_put(pretrained.variables, parallel.replicated(mesh))
        self._embed = functools.lru_cache(_LABEL_LISTS_KEPT)(self._class_embeddings)

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> "Segmenter":
        """Read a model of any kind.

        Args:
          path: a run's folder or a step of it, an export's or a Hugging Face directory, or a
            `.pth`.
          **options: those of `Segmenter`.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: the file is no such model, or an option can't be.
        """
        return cls(load_pretrained(path), **options)

    def __call__(
        self, image: Any, labels: Sequence[str] | None = None, *, layout: str = "HWC"
    ) -> SegmentationResult:
        """Segment one image.

        Args:
          image: a file's path, address or bytes, a `PIL.Image`, or an array or tensor, UInt8 or
            floats from 0 to 1, [H, W], [H, W, 3] or [H, W, 4]. It is turned upright by its EXIF
            orientation; transparency is laid on white.
          labels: what to look for, e.g. ["dog", "grass", "frisbee"]; those of a segment head by
            default.
          layout: of arrays: "HWC", or "CHW" for [3, H, W].

        Raises:
          ValueError: no labels, an empty one, one twice, others than the segment head's, or
            prompts of another label; or something that is no image.
          FileNotFoundError: there is no such file.
        """
        return next(self._results([("image", image)], self._checked(labels), layout))

    def batch(
        self,
        images: Iterable[Any] | os.PathLike,
        labels: Sequence[str] | None = None,
        *,
        layout: str = "HWC",
    ) -> Iterator[SegmentationResult]:
        """Segment many images, faster than one by one; their results come in order.

        Images are read as they are needed. Arguments and errors are those of a single image, which
        may also be given in place of many.
        """
        checked = self._checked(labels)
        several: Any = [images] if _is_one(images) else images
        named = ((f"images[{i}]", image) for i, image in enumerate(several))
        return self._results(named, checked, layout)

    def with_background(self, threshold: float | None) -> "Segmenter":
        """Return the same model with another background threshold; it shares compiled programs.

        Args:
          threshold: the score that a label has to reach, 0 to 1; None for no background.

        Raises:
          ValueError: the threshold is out of range, or the model has a segment head.
        """
        if self.class_names:
            raise ValueError(f"background={threshold}: a segment head has learnt its own")
        _check_threshold(threshold)
        other = copy.copy(self)
        other.protocol = dataclasses.replace(self.protocol, background_threshold=threshold)
        other._has_background = threshold is not None
        other._segment = self._segment.with_threshold(threshold)
        return other

    def name_groups(
        self, result: SegmentationResult, vocabulary: Sequence[str] = (), count: int = 5
    ) -> list[list[tuple[str, float]]]:
        """Return the labels nearest to each group of the last stage, nearest first.

        Args:
          result: of this model.
          vocabulary: labels to choose from, without duplicates; a segment head has its own.
          count: the most labels of a group.

        Returns:
          For each group labels with their cosine similarity to it, or with the group's class
          probabilities where a segment head tells them.

        Raises:
          ValueError: the vocabulary is empty or has an empty label or one twice.
        """
        assert result.group_features is not None
        names, similarity = self.class_names, result.group_features
        if not names:
            names = check_labels(vocabulary)
            length = np.linalg.norm(similarity, axis=-1, keepdims=True)
            # A label may have several names with a vector each, of which the nearest counts.
            texts = self._embed(names).reshape(len(names), -1, similarity.shape[-1])
            similarity = np.einsum("gd,nmd->gnm", similarity / np.maximum(length, 1e-12), texts)
            similarity = similarity.max(axis=-1)  # [G, N, M] -> [G, N]
        nearest = np.argsort(-similarity, axis=-1, kind="stable")[:, :count]
        return [
            [(names[i], float(of_group[i])) for i in best]
            for of_group, best in zip(similarity, nearest, strict=True)
        ]

    def mask_labels(self, labels: Sequence[str] | None = None) -> tuple[str, ...]:
        """Return what the values of masks stand for, from 0 on: a background comes first.

        Raises:
          ValueError: no labels, an empty one, one twice, or others than the segment head's.
        """
        checked = self._checked(labels)
        return (BACKGROUND, *checked) if self.protocol.has_background else checked

    def _checked(self, labels: Sequence[str] | None) -> tuple[str, ...]:
        own = self.class_names
        if labels is None and not own:
            raise ValueError("labels: none found, expected what to look for")
        if labels is None:
            return own
        if own and tuple(labels) != own:
            raise ValueError(
                f"labels: {list(labels)} found, expected none or {list(own)}: the segment head of "
                "this model knows no others"
            )
        checked = own or check_labels(labels, self.protocol.has_background)
        check_known(self._own_prompts, checked, "prompts")
        return checked

    def _results(
        self, images: Iterable[tuple[str, Any]], labels: tuple[str, ...], layout: str
    ) -> Iterator[SegmentationResult]:
        waiting: collections.deque[RgbImage] = collections.deque()

        def read() -> Iterator[RgbImage]:
            for name, image in images:
                waiting.append(read_photo(image, name, layout, self._max_pixels))
                yield waiting[-1]

        names = self.mask_labels(labels)
        for found in self._segment(self._variables, self._embed(labels), read()):
            yield SegmentationResult(
                waiting.popleft(),
                found.mask,
                names,
                found.scores,
                found.classes,
                found.groups,
                self._has_background,
                found.group_maps,
                found.group_features,
            )

    def _class_embeddings(self, labels: tuple[str, ...]) -> Float[np.ndarray, "N *names D"]:
        return self._encoder.class_embeddings(self._variables, labels, self.protocol.texts)


def _is_one(images: Any) -> bool:
    """Return whether this is an image: a path would be read letter by letter."""
    single = isinstance(images, str | bytes | os.PathLike) or not isinstance(images, Iterable)
    return single or 2 <= getattr(images, "ndim", 0) <= 3


def check_labels(labels: Sequence[str], has_background: bool = False) -> tuple[str, ...]:
    """Return the labels without spaces around them.

    Raises:
      ValueError: there is none, one is empty, or two are the same but for case and spaces.
    """
    if isinstance(labels, str):
        raise ValueError(f"labels: the text {labels!r} found, expected a list such as ['dog']")
    if wrong := [label for label in labels if not isinstance(label, str)]:
        raise ValueError(f"labels: {wrong[0]!r} found, expected texts")
    cleaned = [" ".join(label.split()) for label in labels]
    if not cleaned:
        raise ValueError("labels: an empty list found, expected at least one label")
    seen = {BACKGROUND: "the background's own"} if has_background else {}
    for label in cleaned:
        if not label:
            raise ValueError(f"labels: an empty label found in {list(labels)}, expected names")
        key = label.casefold()
        if key in seen:
            raise ValueError(f"labels: {label!r} found twice ({seen[key]}), expected it once")
        seen[key] = repr(label)
    return tuple(cleaned)


def _make_protocol(name: str, image_size: int, background: bool | float, **knobs: Any) -> Protocol:
    threshold = None if isinstance(background, bool) else float(background)
    _check_threshold(threshold)
    return make_protocol(
        name,
        has_background=background is not False,
        image_size=image_size,
        **{"background_threshold": threshold, **knobs},
    )


def _check_threshold(threshold: float | None) -> None:
    if threshold is not None and not 0 < threshold <= 1:
        raise ValueError(f"background={threshold}: expected True, False or a number from 0 to 1")
