"""The page's functions, without a web server: photos and settings in, values of the page out."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from groupvit_jax.data.eval_sets.mask_files import class_names
from groupvit_jax.eval.protocol import THRESHOLDS
from groupvit_jax.report import visualize
from groupvit_jax.scenes import dataset
from groupvit_jax.segmenter import Segmenter, check_labels
from groupvit_jax.serve.answer import describe
from groupvit_jax.serve.photos import Limits, Photo, data_url, receive, restore
from groupvit_jax.serve.worker import Worker

_SETS = ("coco_stuff", "ade20k", "context", "voc", "cityscapes")
_LONGEST_LABEL = 100  # characters
_NAMES = 5  # of a segment
_EXAMPLES, _EXAMPLE_SIDE = 8, 256

View = dict[str, Any]


def default_vocabulary() -> tuple[str, ...]:
    """Return the class names of the scenes and of the segmentation sets, each once."""
    names = [*dataset.CLASS_NAMES, *(name for each in _SETS for name in class_names(each))]
    # Reversed, so that of two spellings the first one is kept.
    first = {name.casefold(): name for name in reversed(names)}
    return tuple(sorted(first.values(), key=str.casefold))


def example_scenes(side: int) -> list[Photo]:
    """Draw the first test scenes of the embedded data set, with this many pixels a side."""
    config = dataset.SceneConfig(name="page", size=side)
    scenes = [dataset.make_example(config, "test", i) for i in range(_EXAMPLES)]
    return [
        Photo(caption, data_url(visualize.png(drawing.image)), side, side)
        for _, drawing, caption in scenes
    ]


class Page:
    """Answers the page's events; it keeps nothing of a photo between two of them.

    A view, the value of the page's picture, is {"items": [{"photo": ..., "result": ...}],
    "messages": [...], "busy": ...}: photos with their segmentation or None, sentences about what
    went wrong, and whether more follows.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        *,
        threshold: float | None = None,
        labels: Sequence[str] = dataset.CLASS_NAMES,
        vocabulary: Sequence[str] = (),
        limits: Limits | None = None,
    ) -> None:
        """Take a model.

        Args:
          segmenter: the model.
          threshold: where the background's slider starts; None for the published threshold.
          labels: those that the page opens with.
          vocabulary: the labels that segments are named by; the class names of the scenes and of
            the segmentation sets by default.
          limits: bounds on uploads.

        Raises:
          ValueError: naming labels, vocabulary or threshold, if they can't be.
        """
        self.segmenter, self.limits = segmenter, limits or Limits()
        self.labels = segmenter.class_names or check_labels(labels)
        self.vocabulary = check_labels(vocabulary or default_vocabulary())
        self.threshold = THRESHOLDS["groupvit"][""] if threshold is None else threshold
        self._model(True, self.threshold)  # raises if the threshold can't be
        # Larger than in training, where scenes have 64 pixels: they are drawn, not scaled up.
        self.examples = example_scenes(min(_EXAMPLE_SIDE, self.limits.side))
        self._worker = Worker(self.limits.seconds, self.limits.waiting)

    @property
    def has_head(self) -> bool:
        """Whether the model has a segment head, and so labels and a background of its own."""
        return bool(self.segmenter.class_names)

    def warm_up(self) -> None:
        """Compile the programs of the first answer, so that no visitor waits for them."""
        photo = self.examples[0]
        self._segment(photo, self._model(False, self.threshold), self.labels)

    def close(self) -> None:
        """Drop what waits; the page answers no more."""
        self._worker.close()

    def upload(
        self, files: Any, labels: Sequence[str], background: bool, threshold: float
    ) -> Iterator[View]:
        """Yield the view of uploaded photos, then again after the segmentation of each.

        Args:
          files: [{"name": ..., "data": a data URL}, ...] as the browser sent them.
          labels: what to look for.
          background: whether pixels may have none of the labels.
          threshold: the score that a label has to reach if they may.
        """
        photos: list[Photo] = []
        messages: list[str] = []
        files = files if isinstance(files, list) else []
        if len(files) > self.limits.photos:
            most = self.limits.photos
            messages.append(f"{len(files)} photos found, expected at most {most} at once")
        for file in files[: self.limits.photos]:
            try:
                content = file["name"], file["data"], self.limits
                photos.append(self._worker.run(receive, *content))
            except ValueError as error:
                messages.append(str(error))
        yield from self._answers(photos, messages, labels, background, threshold)

    def example(
        self, index: int, labels: Sequence[str], background: bool, threshold: float
    ) -> Iterator[View]:
        """Yield the view of an example."""
        yield from self._answers([self.examples[index]], [], labels, background, threshold)

    def again(
        self, records: Any, labels: Sequence[str], background: bool, threshold: float
    ) -> Iterator[View]:
        """Yield the view of photos that the page holds, with other settings."""
        messages: list[str] = []
        photos: list[Photo] = []
        for record in (records or [])[: self.limits.photos]:
            try:
                photos.append(restore(record, self.limits))
            except ValueError as error:
                messages.append(str(error))
        yield from self._answers(photos, messages, labels, background, threshold)

    def _answers(
        self,
        photos: Sequence[Photo],
        messages: list[str],
        labels: Sequence[str],
        background: bool,
        threshold: float,
    ) -> Iterator[View]:
        results: list[View | None] = [None] * len(photos)

        def view(busy: bool) -> View:
            items = zip(photos, results, strict=True)
            shown = [{"photo": dataclasses.asdict(p), "result": r} for p, r in items]
            return {"items": shown, "messages": list(messages), "busy": busy}

        try:
            names = self._checked(labels)
            model = self._model(background, threshold)
        except ValueError as error:
            messages.append(str(error))
            yield view(False)
            return
        yield view(bool(photos))
        for number, photo in enumerate(photos):
            try:
                results[number] = self._worker.run(self._segment, photo, model, names)
            except ValueError as error:
                messages.append(str(error))
            yield view(number + 1 < len(photos))

    def _checked(self, labels: Sequence[str]) -> tuple[str, ...]:
        if self.has_head:
            return self.labels
        names = check_labels(split_labels(labels))
        if len(names) > self.limits.labels:
            raise ValueError(f"labels: {len(names)} found, expected at most {self.limits.labels}")
        for name in names:
            if len(name) > _LONGEST_LABEL:
                raise ValueError(
                    f"labels: {name[:20]!r}... has {len(name)} characters, expected at most "
                    f"{_LONGEST_LABEL}"
                )
        return names

    def _model(self, background: bool, threshold: float) -> Segmenter:
        if self.has_head:
            return self.segmenter
        return self.segmenter.with_background(float(threshold) if background else None)

    def _segment(self, photo: Photo, model: Segmenter, labels: tuple[str, ...]) -> View:
        result = model(photo.pixels(self.limits), labels)
        named = model.name_groups(result, self.vocabulary, _NAMES)
        if not self.has_head:
            # Apart from the vocabulary: that is embedded once, labels change with every visitor.
            own = model.name_groups(result, labels, _NAMES)
            named = [_nearest(*both) for both in zip(named, own, strict=True)]
        return describe(result, named, photo)


def _nearest(*found: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Merge lists of labels with their similarity to one group; return the nearest, each once."""
    # Of both lists, the visitor's comes last and keeps its spelling.
    merged = {name.casefold(): (name, value) for names in found for name, value in names}
    return sorted(merged.values(), key=lambda pair: -pair[1])[:_NAMES]


def split_labels(labels: Sequence[str]) -> list[str]:
    """Return one label for each part of a tag that commas or line ends separate."""
    parts = (part.strip() for tag in labels or () for part in tag.replace("\n", ",").split(","))
    return [part for part in parts if part]
