"""Pictures of segmentations and groups for reports, galleries and papers."""

import functools
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Integer
from PIL import Image

from groupvit_jax.report import lettering
from groupvit_jax.typing import UInt8

RgbImage = UInt8[np.ndarray, "H W 3"]
Labels = Integer[np.ndarray, "H W"]
Colours = UInt8[np.ndarray, "N 3"]

_PAPER = 255
# Bounds in CIELAB: very dark or light colours would hide the photo below, and greyish ones would
# look like the unlabelled photo.
_LIGHTNESS, _CHROMA, _GRID = (42, 86), (32, 80), 24
_FIRST_COLOUR = (47, 126, 216)


def palette(count: int) -> Colours:
    """Return `count` distinguishable colours; a longer palette extends a shorter one.

    Each colour is the furthest in CIELAB from all earlier ones, among colours that are neither
    dark nor pale nor grey.
    """
    return _palette(count).copy()


@functools.cache
def _palette(count: int) -> Colours:
    rgb = np.stack(np.meshgrid(*[np.linspace(0, 255, _GRID)] * 3), axis=-1).reshape(-1, 3)
    rgb = np.rint(rgb).astype(np.uint8)
    lightness, a, b = _lab(rgb).T
    chroma = np.hypot(a, b)
    kept = (lightness > _LIGHTNESS[0]) & (lightness < _LIGHTNESS[1])
    rgb = rgb[kept & (chroma > _CHROMA[0]) & (chroma < _CHROMA[1])]
    lab, chosen = _lab(rgb), [np.array(_FIRST_COLOUR, np.uint8)]
    nearest = np.full(len(lab), np.inf)
    while len(chosen) < count:
        difference = lab - _lab(chosen[-1][None])
        nearest = np.minimum(nearest, (difference**2).sum(axis=1))
        chosen.append(rgb[nearest.argmax()])
    return np.stack(chosen)[:count]


def _lab(rgb: Colours) -> np.ndarray:
    # In floats L is 0 to 100 and a, b have signs; bytes would be scaled, shifted and rounded.
    return cv2.cvtColor(rgb[None].astype(np.float32) / 255, cv2.COLOR_RGB2Lab)[0]


def colour(labels: Labels, colours: Colours) -> RgbImage:
    """Paint each label in its colour; labels without a colour are black."""
    table = np.concatenate([colours, np.zeros((1, 3), np.uint8)])
    return table.take(np.where(_has_colour(labels, colours), labels, len(colours)), axis=0)


def overlay(
    image: RgbImage,
    labels: Labels,
    colours: Colours,
    strength: float = 0.55,
    background: int | None = None,
) -> RgbImage:
    """Paint the labels over the image, with a white line between regions.

    Args:
      image: the segmented image.
      labels: label of each pixel; labels without a colour show the photo, grey and dimmed.
      colours: colours of labels 0, 1, ...
      strength: opacity of the colours, 0 to 1.
      background: label to draw as if it had no colour.
    """
    painted = _has_colour(labels, colours) & (labels != background)
    mixed = cv2.addWeighted(image, 1 - strength, colour(labels, colours), strength, 0)
    mixed = np.where(painted[..., None], mixed, _dimmed(image))
    # Not pure white: the borders of ragged regions would cover most of their colour.
    lines = cv2.addWeighted(mixed, 0.25, np.full_like(mixed, 255), 0.75, 0)
    return np.where(_borders(np.where(painted, labels, -1))[..., None], lines, mixed)


def _has_colour(labels: Labels, colours: Colours) -> np.ndarray:
    return (labels >= 0) & (labels < len(colours))


def _dimmed(image: RgbImage) -> RgbImage:
    """The image in grey, half as bright and a little flatter."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    return np.repeat(24 + grey // 9 * 4, 3, axis=2)


def _borders(labels: Labels) -> np.ndarray:
    """Mask of pixels that differ from their right or lower neighbour, widened in large pictures."""
    borders = np.zeros(labels.shape, np.uint8)
    borders[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    borders[:-1] |= labels[:-1] != labels[1:]
    width = 1 + min(labels.shape) // 900
    return cv2.dilate(borders, np.ones((width, width), np.uint8)).astype(bool)


def enlarge(image: UInt8[np.ndarray, "H W *C"], factor: int) -> UInt8[np.ndarray, "h w *C"]:
    """Repeat every pixel `factor` times in both directions."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def write_names(
    image: RgbImage, labels: Labels, names: Sequence[str], min_share: float = 0.004
) -> RgbImage:
    """Write the name of each label into its largest connected region.

    A name is centred at the widest place of its region, in a font size that follows the picture's
    size. It is moved inside the picture and away from the names of larger regions. A region
    without room stays unnamed. A name in a script that the font lacks is written as the label's
    number, `#3`.

    Args:
      image: the picture to write on.
      labels: label of each pixel.
      names: names of labels 0, 1, ...; empty names are skipped.
      min_share: regions with a smaller share of the picture stay unnamed.

    Returns:
      A new picture.
    """
    image, size = image.copy(), lettering.size_for(image.shape)
    step = 1 + min(labels.shape) // 800  # large pictures are searched at half or third resolution
    coarse = labels[::step, ::step]
    parts = [
        (*_largest_part(coarse == label), _written(names[label], int(label)))
        for label in np.unique(coarse)
        if 0 <= label < len(names) and names[label]
    ]
    taken: list[_Box] = []
    # From the largest: smaller regions give way to its name.
    for area, corner, part, name in sorted(parts, key=lambda part: -part[0]):
        if area < max(min_share * coarse.size, (size / step) ** 2 / 2):
            continue
        letters = lettering.fit(name, size, labels.shape[1])
        # Rounded up: a box must hold all of its text.
        height, width = (-(-side // step) for side in letters.shape)
        box = _place(part, corner, (height, width), coarse.shape, taken)
        if box is not None:
            lettering.stamp(image, letters, step * box.top, step * box.left)
            taken.append(box)
    return image


def _written(name: str, label: int) -> str:
    return name if lettering.can_write(name) else f"#{label}"


class _Box(NamedTuple):
    top: int
    left: int
    height: int
    width: int


def _largest_part(inside: np.ndarray) -> tuple[int, tuple[int, int], np.ndarray]:
    """Return area, corner (top, left) and mask of the largest connected region."""
    # Component 0 is all that lies outside.
    _, ids, stats, _ = cv2.connectedComponentsWithStats(inside.astype(np.uint8), connectivity=4)
    best = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    left, top, width, height, area = stats[best].tolist()
    return area, (top, left), ids[top : top + height, left : left + width] == best


def _place(
    part: np.ndarray,
    corner: tuple[int, int],
    text: tuple[int, int],
    picture: tuple[int, ...],
    taken: Sequence[_Box],
) -> _Box | None:
    """Return the place of a text of some height and width: centred at the widest place."""
    height, width = text
    # Padded, because the picture's edge ends a region as another region does.
    depth = cv2.distanceTransform(np.pad(part.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    # Top left corner of a box centred at each row and column, clipped to the picture.
    tops = np.arange(part.shape[0]) + corner[0] - height // 2
    lefts = np.arange(part.shape[1]) + corner[1] - width // 2
    tops = np.clip(tops, 0, max(picture[0] - height, 0))
    lefts = np.clip(lefts, 0, max(picture[1] - width, 0))
    for other in taken:
        rows = (tops < other.top + other.height) & (other.top < tops + height)
        columns = (lefts < other.left + other.width) & (other.left < lefts + width)
        depth[np.ix_(rows, columns)] = 0
    if depth.max() <= height / 8:
        return None
    widest = np.argwhere(depth > 0.95 * depth.max())  # the middle, in a long strip
    y, x = widest[((widest - widest.mean(axis=0)) ** 2).sum(axis=1).argmin()]
    return _Box(int(tops[y]), int(lefts[x]), height, width)


def grid(rows: Sequence[Sequence[RgbImage]], gap: int = 4) -> UInt8[np.ndarray, "h w 3"]:
    """Arrange pictures of one size in rows, on white."""
    H, W = rows[0][0].shape[:2]
    height, width = len(rows) * (H + gap) - gap, max(map(len, rows)) * (W + gap) - gap
    canvas = np.full((height, width, 3), _PAPER, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            y, x = i * (H + gap), j * (W + gap)
            canvas[y : y + H, x : x + W] = picture
    return canvas


def side_by_side(pictures: Mapping[str, RgbImage]) -> UInt8[np.ndarray, "h w 3"]:
    """Arrange captioned pictures of one size side by side, or wide ones below each other."""
    captioned = [caption(picture, text) for text, picture in pictures.items()]
    H, W = captioned[0].shape[:2]
    gap = max(4, min(H, W) // 60)
    return grid([[each] for each in captioned] if W > 2 * H else [captioned], gap)


def caption(image: RgbImage, text: str) -> UInt8[np.ndarray, "h W 3"]:
    """Put a line of dark text on white above a picture."""
    H, W = image.shape[:2]
    size = lettering.size_for((max(H, W // 4), W))
    strip = np.full((lettering.line_height(size), W, 3), _PAPER, np.uint8)
    lettering.ink(strip, lettering.fit(text, size, W))
    return np.concatenate([strip, image])


def png(image: RgbImage) -> bytes:
    """Encode an RGB picture as PNG."""
    # OpenCV takes BGR.
    return cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes()


def jpeg(image: RgbImage, quality: int = 85) -> bytes:
    """Encode an RGB picture as JPEG, in far fewer bytes than `png`."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    return cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), options)[1].tobytes()


def mask_png(labels: Labels, colours: Colours) -> bytes:
    """Encode the labels losslessly as PNG.

    With up to 256 colours the labels are indices of a palette, else 16-bit grey values.

    Raises:
      ValueError: a label is negative or above 65535.
    """
    if labels.min() < 0 or labels.max() > 65535:
        raise ValueError(f"labels {labels.min()} to {labels.max()} found, expected 0 to 65535")
    if len(colours) > 256:
        return cv2.imencode(".png", labels.astype(np.uint16))[1].tobytes()
    picture, file = Image.fromarray(labels.astype(np.uint8)), io.BytesIO()
    picture.putpalette(colours.tobytes())
    picture.save(file, "PNG")
    return file.getvalue()
