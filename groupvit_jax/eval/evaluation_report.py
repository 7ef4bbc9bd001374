"""The report of an evaluation as one HTML file: results, IoU of each class, pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Integer

from groupvit_jax.report import visualize
from groupvit_jax.typing import UInt8

_MAX_BYTES = 1_600_000  # of all pictures: mail and code review take pages of 2 MB
_Row = tuple[list[str], str]  # data URLs of the pictures and the text below
_SIDES = (480, 400, 320, 240, 200, 160)  # the longer one of a picture, in pixels


class Example(NamedTuple):
    """An image with its prediction and ground truth.

    Attributes:
      image: the segmented image.
      prediction: predicted class of each pixel.
      truth: true class of each pixel; values without a name, such as `metrics.IGNORED`, are not
        painted.
      names: class names, with the background first if there is one.
      has_background: whether class 0 is the background.
      text: line of text below the pictures.
    """

    image: UInt8[np.ndarray, "H W 3"]
    prediction: Integer[np.ndarray, "H W"]
    truth: Integer[np.ndarray, "H W"]
    names: Sequence[str]
    has_background: bool
    text: str = ""


def write_report(
    path: Path,
    title: str,
    *,
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    facts: Mapping[str, object] | None = None,
    class_iou: Mapping[str, Mapping[str, float]] | None = None,
    examples: Mapping[str, Sequence[Example]] | None = None,
    curves: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    remarks: Sequence[Sequence[str]] = (),
) -> None:
    """Write a self-contained page of at most about 2 MB.

    Args:
      path: of the file; its folder is created.
      title: of the page.
      header: of the table of results.
      rows: of that table; floats are shown with one digit.
      facts: checkpoint and protocol, and whatever else tells what was evaluated, by name.
      class_iou: for each benchmark the IoU of each class, 0 to 1; NaN where a class never occurs.
      examples: for each benchmark the images to show; all of them become smaller until the page
        is small enough.
      curves: mIoU in per cent by background threshold, for sets with several.
      remarks: blocks of lines below the table.
    """
    # Imported where a page is written: every training run imports this module for `Example`.
    from groupvit_jax.report import charts, document

    class_iou, examples = class_iou or {}, examples or {}
    document.write(
        path,
        "evaluation",
        title=title,
        header=header,
        rows=rows,
        facts=facts or {},
        remarks=remarks,
        benchmarks=[*dict.fromkeys([*class_iou, *examples])],
        class_iou={name: _sorted_percent(values) for name, values in class_iou.items()},
        examples=_pictures(examples),
        curve=charts.line_chart("mIoU in per cent by background threshold", curves)
        if curves
        else "",
    )


def _sorted_percent(values: Mapping[str, float]) -> list[tuple[str, float]]:
    """The best class first, those that never occur last."""
    percent = [(name, 100 * value) for name, value in values.items()]
    return sorted(percent, key=lambda item: -np.nan_to_num(item[1], nan=-1.0))


def _pictures(examples: Mapping[str, Sequence[Example]]) -> dict[str, list[_Row]]:
    """Return the pictures of each benchmark as data URLs, as large as the page's size allows."""
    rows: dict[str, list[_Row]] = {}
    for side in _SIDES:
        rows = {name: [_row(each, side) for each in shown] for name, shown in examples.items()}
        urls = (url for shown in rows.values() for row, _ in shown for url in row)
        if sum(map(len, urls)) <= _MAX_BYTES:
            break
    return rows


def _row(example: Example, side: int) -> _Row:
    """Photo, segmentation and truth, reduced first so that all names have one size."""
    from groupvit_jax.report import document

    H, W = example.image.shape[:2]
    scale = min(1, side / max(H, W))
    size = max(1, round(W * scale)), max(1, round(H * scale))
    image = cv2.resize(example.image, size, interpolation=cv2.INTER_AREA)
    colours, names, background = visualize.palette(len(example.names)), example.names, None
    if example.has_background:
        # The background isn't painted: classes keep the colours of a set without background.
        colours, names, background = np.roll(colours, 1, axis=0), ["", *names[1:]], 0

    def painted(labels: np.ndarray) -> np.ndarray:
        small = cv2.resize(labels.astype(np.int32), size, interpolation=cv2.INTER_NEAREST)
        over = visualize.overlay(image, small, colours, background=background)
        return visualize.write_names(over, small, names)

    pictures = [image, painted(example.prediction), painted(example.truth)]
    return [document.data_url(picture, "jpeg") for picture in pictures], example.text
