"""The report of an evaluation as one HTML file: tables, each class's IoU, pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Integer

from groupvit_jax.report import document, visualize
from groupvit_jax.typing import UInt8

_MAX_BYTES = 1_600_000  # of all pictures
_SIDES = (480, 400, 320, 240, 200, 160)  # the longer one of a picture, in pixels


class Example(NamedTuple):
    """An image with its prediction and truth.

    Attributes:
      image: what was segmented.
      prediction: class of every pixel.
      truth: the same; values without a name, such as `metrics.IGNORED`, are not painted.
      names: of the classes, the background's first if there is one.
      has_background: whether class 0 is the background.
      text: a line below the pictures.
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
) -> None:
    """Writes a page that needs nothing beside itself, of at most about 2 MB.

    Args:
      path: of the file; its folder is created.
      title: of the page.
      header: of the table of results.
      rows: of that table; floats are shown with one digit.
      facts: what was evaluated and how, by name.
      class_iou: for each benchmark the IoU of each class, 0 to 1; NaN where a class never occurs.
      examples: for each benchmark what is shown of it; all pictures become smaller until the page
        is small enough.
    """
    parts = [document.table(header, rows)]
    if facts:
        parts.append(document.table(["what", ""], list(facts.items())))
    panels = _panels(examples or {})
    for name in dict.fromkeys([*(class_iou or {}), *panels]):
        parts.append(document.heading(name))
        if class_iou and name in class_iou:
            percent = {key: 100 * value for key, value in class_iou[name].items()}
            parts.append(document.bar_chart("IoU of each class in per cent", percent, full=100.0))
        if name in panels:
            parts.append(panels[name])
    document.write(path, document.page(title, parts))


def _panels(examples: Mapping[str, Sequence[Example]]) -> dict[str, str]:
    """Returns the HTML of each benchmark's pictures, as large as the page's size allows."""
    header = ("photo", "segmentation", "truth")
    panels: dict[str, str] = {}
    for side in _SIDES:
        panels = {
            name: document.scenes(header, [_row(each, side) for each in shown], document.photo)
            for name, shown in examples.items()
        }
        if sum(map(len, panels.values())) <= _MAX_BYTES:
            break
    return panels


def _row(example: Example, side: int) -> tuple[list[np.ndarray], str]:
    """Photo, segmentation and truth, each reduced before names are written on it."""
    H, W = example.image.shape[:2]
    scale = min(1, side / max(H, W))
    size = max(1, round(W * scale)), max(1, round(H * scale))
    image = cv2.resize(example.image, size, interpolation=cv2.INTER_AREA)
    colours, names, background = visualize.palette(len(example.names)), example.names, None
    if example.has_background:
        # Its own colour is never seen: the classes have those that they would have without it.
        colours, names, background = np.roll(colours, 1, axis=0), ["", *names[1:]], 0

    def painted(labels: np.ndarray) -> np.ndarray:
        small = cv2.resize(labels.astype(np.int32), size, interpolation=cv2.INTER_NEAREST)
        over = visualize.overlay(image, small, colours, background=background)
        return visualize.write_names(over, small, names)

    return [image, painted(example.prediction), painted(example.truth)], example.text
