"""Pictures of segmentations and groups."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Integer

from groupvit_jax.typing import UInt8

RgbImage = UInt8[np.ndarray, "H W 3"]
_GOLDEN = 0.618034


def palette(count: int) -> UInt8[np.ndarray, "N 3"]:
    """Returns `count` colours that the eye tells apart, neighbours in the list above all."""
    index = np.arange(count)
    hue = (0.58 + index * _GOLDEN) % 1 * 179
    saturation = np.array([210, 130, 235])[index % 3]
    value = np.array([235, 205, 160, 250])[index % 4]
    hsv = np.stack([hue, saturation, value], axis=1).astype(np.uint8)
    return cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]


def colour(
    labels: Integer[np.ndarray, "H W"], colours: UInt8[np.ndarray, "N 3"], ignored: int = 255
) -> RgbImage:
    """Paints each label in its colour; `ignored` is black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colours)] = colours
    table[ignored] = 0
    return table[labels]


def overlay(
    image: RgbImage,
    labels: Integer[np.ndarray, "H W"],
    colours: UInt8[np.ndarray, "N 3"],
    strength: float = 0.6,
) -> RgbImage:
    """Paints the labels over the image, with a white line between regions."""
    mixed = cv2.addWeighted(image, 1 - strength, colour(labels, colours), strength, 0)
    return np.where(_borders(labels)[..., None], np.uint8(255), mixed)


def _borders(labels: Integer[np.ndarray, "H W"]) -> np.ndarray:
    """Which pixels differ from the one to the right or below."""
    borders = np.zeros(labels.shape, bool)
    borders[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    borders[:-1] |= labels[:-1] != labels[1:]
    return borders


def enlarge(image: UInt8[np.ndarray, "H W *C"], factor: int) -> UInt8[np.ndarray, "h w *C"]:
    """Repeats every pixel `factor` times in both directions."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def grid(rows: Sequence[Sequence[RgbImage]], gap: int = 4) -> UInt8[np.ndarray, "h w 3"]:
    """Lays pictures of one size out in rows, on white."""
    H, W = rows[0][0].shape[:2]
    height, width = len(rows) * (H + gap) - gap, max(map(len, rows)) * (W + gap) - gap
    canvas = np.full((height, width, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            y, x = i * (H + gap), j * (W + gap)
            canvas[y : y + H, x : x + W] = picture
    return canvas


def write_names(
    image: RgbImage,
    labels: Integer[np.ndarray, "H W"],
    names: Sequence[str],
    min_share: float = 0.02,
) -> RgbImage:
    """Writes each label's name into the middle of its largest region, if that is large enough."""
    image = np.ascontiguousarray(image)
    scale = min(image.shape[:2]) / 600
    for label in np.unique(labels):
        if label >= len(names):
            continue
        inside = np.pad((labels == label).astype(np.uint8), 1)
        depth = cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1]
        if (labels == label).mean() >= min_share:
            y, x = np.unravel_index(depth.argmax(), depth.shape)
            _write(image, names[label], (int(x), int(y)), scale)
    return image


def _write(image: RgbImage, text: str, centre: tuple[int, int], scale: float) -> None:
    """White letters with a dark rim, kept inside the picture."""
    font, thickness = cv2.FONT_HERSHEY_SIMPLEX, max(1, round(2 * scale))
    (width, height), _ = cv2.getTextSize(text, font, scale, thickness)
    x = int(np.clip(centre[0] - width // 2, 0, max(image.shape[1] - width, 0)))
    y = int(np.clip(centre[1] + height // 2, height, image.shape[0] - 1))
    for ink, weight in (((20, 20, 20), 3 * thickness), ((255, 255, 255), thickness)):
        cv2.putText(image, text, (x, y), font, scale, ink, weight, cv2.LINE_AA)


def png(image: RgbImage) -> bytes:
    """Encodes an RGB picture."""
    return cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes()
