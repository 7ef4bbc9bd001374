"""A segmentation as JSON for the page: maps as PNGs inside, so that no file is written."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Integer

from groupvit_jax.report import visualize
from groupvit_jax.segmenter import SegmentationResult
from groupvit_jax.serve.photos import Photo, data_url
from groupvit_jax.typing import Float, UInt8

# Scores are smooth: they come from groups, whose maps have a cell for each patch.
_SCORE_SIDE = 320
Names = Sequence[Sequence[tuple[str, float]]]


def describe(result: SegmentationResult, names: Names, photo: Photo) -> dict[str, Any]:
    """Return what the page shows of a segmented photo.

    Args:
      result: the segmentation of the photo's working copy.
      names: for each group of the last stage the nearest labels, nearest first.
      photo: the photo; the mask to download has the size of its upload.

    Returns:
      `height` and `width` of the maps; `mask`, label indices as a grey PNG; `labels`, with share
      and colour, and where a label was likely anywhere with its `score` and the score's `peak`;
      `groups`, for each stage a grey PNG, a count and colours; `names`; and `download`, a PNG with
      a palette.
    """
    height, width = result.mask.shape
    return {
        "height": height,
        "width": width,
        "mask": _indices(result.mask),
        "labels": [_label(result, index) for index in range(len(result.labels))],
        "groups": [_stage(groups) for groups in result.groups],
        "names": [[[name, round(value, 4)] for name, value in nearest] for nearest in names],
        "download": data_url(_mask_file(result, photo)),
    }


def _label(result: SegmentationResult, index: int) -> dict[str, Any]:
    label = {
        "name": result.labels[index],
        "colour": _hex(result.colours[index]),
        "background": bool(result.has_background and index == 0),
        "share": round(float((result.mask == index).mean()), 5),
    }
    if index in result.classes:
        score = result.score(result.labels[index])
        label |= {"score": _score(score), "peak": round(float(score.max()), 4)}
    return label


def _score(score: Float[np.ndarray, "H W"]) -> str:
    """Encode a score as grey levels, its peak being white."""
    scale = min(1.0, _SCORE_SIDE / max(score.shape))
    height, width = (max(1, round(length * scale)) for length in score.shape)
    small = cv2.resize(score, (width, height), interpolation=cv2.INTER_AREA)
    grey = np.rint(255 * np.clip(small / max(float(score.max()), 1e-12), 0, 1))
    return _grey_png(grey.astype(np.uint8))


def _stage(groups: Integer[np.ndarray, "H W"]) -> dict[str, Any]:
    return {
        "map": _indices(groups),
        "count": len(np.unique(groups)),
        "colours": [_hex(colour) for colour in visualize.palette(int(groups.max()) + 1)],
    }


def _indices(labels: Integer[np.ndarray, "H W"]) -> str:
    # Bytes: a page has fewer labels, and models have at most 64 groups a stage.
    return _grey_png(labels.astype(np.uint8))


def _grey_png(grey: UInt8[np.ndarray, "H W"]) -> str:
    return data_url(cv2.imencode(".png", grey)[1].tobytes())


def _mask_file(result: SegmentationResult, photo: Photo) -> bytes:
    size = (photo.width, photo.height)
    # Nearest: between two labels' numbers there is no label.
    mask = cv2.resize(result.mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    return visualize.mask_png(mask, result.colours)


def _hex(colour: UInt8[np.ndarray, " 3"]) -> str:
    return "#" + bytes(colour).hex()
