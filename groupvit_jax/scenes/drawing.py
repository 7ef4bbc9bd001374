"""Renders a scene: pixels, and the class of every pixel.

Coordinates are fractions of the side, x to the right and y downwards. A thing consists of polygons
in its own frame, in which it spans about [-1, 1] in u (right) and v (down).
"""

import dataclasses
import functools
from collections.abc import Callable

import cv2
import numpy as np

from groupvit_jax.typing import Float, UInt8

STUFF = ("sky", "grass", "sand", "water", "brick", "snow")
THINGS = ("ball", "box", "cone", "star", "heart", "tree", "house", "fish")
CLASS_NAMES = STUFF + THINGS

COLOURS = {
    "red": (208, 44, 44),
    "orange": (238, 134, 32),
    "yellow": (240, 214, 48),
    "green": (56, 160, 64),
    "blue": (44, 88, 208),
    "purple": (132, 62, 176),
    "pink": (240, 130, 180),
    "brown": (126, 82, 46),
    "black": (38, 38, 44),
    "white": (238, 238, 232),
}
# The usual colour of each kind of thing.
USUAL_COLOURS = {
    "ball": "red",
    "box": "brown",
    "cone": "orange",
    "star": "yellow",
    "heart": "pink",
    "tree": "green",
    "house": "white",
    "fish": "purple",
}
# Kind of stuff -> its names in captions -> its colour.
STUFF_LOOKS = {
    "sky": {"clear": (110, 170, 236), "cloudy": (176, 190, 206), "pink": (236, 166, 158)},
    "grass": {"green": (84, 150, 58), "dry": (174, 160, 84), "dark": (46, 100, 52)},
    "sand": {"yellow": (226, 198, 134), "white": (232, 220, 196), "brown": (186, 146, 98)},
    "water": {"blue": (42, 104, 168), "green": (48, 130, 126), "dark": (28, 58, 98)},
    "brick": {"red": (166, 78, 60), "gray": (140, 136, 132), "white": (214, 206, 196)},
    "snow": {"fresh": (240, 244, 248), "blue": (206, 222, 242), "dirty": (208, 204, 198)},
}
MATERIALS = ("plain", "striped", "spotted", "checkered", "wooden", "shiny")
UPRIGHT = ("tree", "house", "fish", "heart", "cone")  # kinds that are only tilted, never rotated


@dataclasses.dataclass(frozen=True)
class Stuff:
    """One kind of background, and its look: a key of `STUFF_LOOKS[kind]`."""

    kind: str
    look: str


@dataclasses.dataclass(frozen=True)
class Thing:
    """An object and its placement. `radius` and `centre` are fractions of the side."""

    kind: str
    colour: str
    material: str
    centre: tuple[float, float]
    radius: float
    angle: float  # radians
    hue_shift: float = 0.0  # of 180, OpenCV's hue circle


@dataclasses.dataclass(frozen=True)
class Scene:
    """A description to render: the first stuff above (or left of) the border, the second below it.

    Attributes:
      stuff: one or two kinds.
      border: a point on the border.
      border_angle: in radians; 0 is horizontal.
      things: from back to front.
      texture_scale: scale of texture details; 1 is the default.
    """

    stuff: tuple[Stuff, ...]
    border: tuple[float, float]
    border_angle: float
    things: tuple[Thing, ...]
    texture_scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A rendered scene.

    Attributes:
      image: RGB.
      mask: index into `CLASS_NAMES` for every pixel.
      visible: visible share of each thing's shape.
    """

    image: UInt8[np.ndarray, "S S 3"]
    mask: UInt8[np.ndarray, "S S"]
    visible: tuple[float, ...]


def draw(scene: Scene, size: int, rng: np.random.Generator) -> Drawing:
    """Render `scene` at `size` x `size` pixels; `rng` determines textures and light."""
    # Centres of the pixels, [S, S] each.
    y, x = (np.mgrid[:size, :size].astype(np.float32) + 0.5) / size
    image, mask = _draw_stuff(scene, x, y, rng)
    owner = np.full((size, size), -1)
    light = rng.uniform(0, 2 * np.pi)
    areas = []
    for number, thing in enumerate(scene.things):
        alpha = _draw_thing(image, thing, x, y, light, scene.texture_scale, rng)
        inside = alpha > 0.5
        mask[inside] = CLASS_NAMES.index(thing.kind)
        owner[inside] = number
        areas.append(np.pi * (thing.radius * size) ** 2 * _fill(thing.kind))
    visible = tuple(float((owner == i).sum() / area) for i, area in enumerate(areas))
    return Drawing(_photograph(image, x, y, rng), mask, visible)


def _photograph(image, x, y, rng: np.random.Generator) -> UInt8[np.ndarray, "S S 3"]:
    """Add uneven lighting, a global tint and sensor noise."""
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.3)
    light = 1 + strength * ((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle))
    tint = rng.uniform(0.85, 1.12) * rng.uniform(0.96, 1.04, 3)
    image = image * (light[..., None] * tint).astype(np.float32)
    image += rng.standard_normal(image.shape, np.float32) * rng.uniform(1, 5)
    return np.clip(image, 0, 255).astype(np.uint8)


# --- stuff ---------------------------------------------------------------------------------------


def _noise(shape: tuple[int, int], cells: tuple[float, float], rng) -> Float[np.ndarray, "S S"]:
    """Return smooth noise of standard deviation about 1 with `cells` (rows, columns) bumps."""
    grid = tuple(max(2, round(c) + 1) for c in cells)
    coarse = rng.standard_normal(grid, np.float32)
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)


def _sky(x, y, scale: float, rng: np.random.Generator):
    clouds = _noise(x.shape, (5 / scale, 3 / scale), rng) + 0.5 * _noise(x.shape, (9.0, 6.0), rng)
    return 1 + 0.12 * np.clip(clouds, 0, 2) + 0.15 * (y - 0.5)


def _grass(x, y, scale: float, rng: np.random.Generator):
    blades = _noise(x.shape, (12 / scale, 40 / scale), rng)
    return 1 + 0.2 * blades + 0.06 * _noise(x.shape, (4.0, 4.0), rng)


def _sand(x, y, scale: float, rng: np.random.Generator):
    grains = rng.standard_normal(x.shape, np.float32)
    return 1 + 0.07 * grains + 0.05 * _noise(x.shape, (6 / scale, 4 / scale), rng)


def _water(x, y, scale: float, rng: np.random.Generator):
    bend = 0.03 * _noise(x.shape, (4.0, 4.0), rng)
    waves = np.sin(2 * np.pi * ((y + bend) * rng.uniform(9, 14) / scale + x * 0.7))
    return 1 + 0.2 * waves + 0.05 * _noise(x.shape, (16.0, 6.0), rng)


def _brick(x, y, scale: float, rng: np.random.Generator):
    rows = y * rng.uniform(8, 11) / scale
    columns = x * rng.uniform(4, 5.5) / scale + 0.5 * (np.floor(rows) % 2)
    mortar = (rows % 1 < 0.22) | (columns % 1 < 0.12)
    tones = rng.standard_normal((32, 32)).astype(np.float32)
    tone = tones[np.floor(rows).astype(int) % 32, np.floor(columns).astype(int) % 32]
    return np.where(mortar, 1.35, 0.95 + 0.1 * tone)


def _snow(x, y, scale: float, rng: np.random.Generator):
    sparkle = rng.random(x.shape) < 0.03
    drifts = _noise(x.shape, (5 / scale, 3 / scale), rng)
    return 1 + 0.06 * drifts - 0.15 * sparkle


_STUFF_TEXTURES: dict[str, Callable[..., np.ndarray]] = {
    "sky": _sky,
    "grass": _grass,
    "sand": _sand,
    "water": _water,
    "brick": _brick,
    "snow": _snow,
}


def _draw_stuff(scene: Scene, x, y, rng: np.random.Generator):
    """Return float pixels and mask of the background."""
    layers = []
    for stuff in scene.stuff:
        colour = np.array(STUFF_LOOKS[stuff.kind][stuff.look]) * rng.uniform(0.92, 1.08, 3)
        shade = _STUFF_TEXTURES[stuff.kind](x, y, scene.texture_scale, rng)
        layers.append(shade[..., None].astype(np.float32) * colour.astype(np.float32))
    classes = [CLASS_NAMES.index(stuff.kind) for stuff in scene.stuff]
    if len(layers) == 1:
        return layers[0], np.full(x.shape, classes[0], np.uint8)
    (x0, y0), angle = scene.border, scene.border_angle
    along = (x - x0) * np.cos(angle) + (y - y0) * np.sin(angle)
    across = (y - y0) * np.cos(angle) - (x - x0) * np.sin(angle)
    across -= rng.uniform(0, 0.03) * np.sin(along * rng.uniform(4, 16) + rng.uniform(0, 6))
    # Over the width of one pixel: the border is smooth in the image and sharp in the mask.
    second = np.clip(across * x.shape[0] + 0.5, 0, 1)[..., None]
    mask = np.where(second[..., 0] > 0.5, classes[1], classes[0]).astype(np.uint8)
    return (layers[0] * (1 - second) + layers[1] * second).astype(np.float32), mask


# --- things --------------------------------------------------------------------------------------

Polygon = Float[np.ndarray, "N 2"]
_SUPERSAMPLING = 4


@dataclasses.dataclass(frozen=True)
class Part:
    """Polygons filled by the even-odd rule; `paint` is a fixed colour or None."""

    polygons: tuple[Polygon, ...]
    paint: tuple[int, int, int] | None = None  # None uses the thing's colour and material


def _circle(radius=1.0, centre=(0.0, 0.0), squash=1.0, count=32) -> Polygon:
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([np.cos(angles), squash * np.sin(angles)], 1) * radius + np.array(centre)


def _polygon(*points: tuple[float, float]) -> Polygon:
    return np.array(points, float)


def _star() -> Polygon:
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    radii = np.where(np.arange(10) % 2, 0.45, 1.05)
    return np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]


def _heart() -> Polygon:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    v = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([np.sin(t) ** 3, -(v + 2) / 15], 1)


@functools.cache
def _shape(kind: str) -> tuple[Part, ...]:
    """Return the parts of a kind of thing, from back to front."""
    box = _polygon((-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8))
    slope = _polygon((0.0, -1.1), (0.9, 0.75), (-0.9, 0.75))
    trunk = _polygon((-0.16, 0.2), (0.16, 0.2), (0.22, 1.0), (-0.22, 1.0))
    leaves = (_circle(0.6, (0, -0.4)), _circle(0.5, (-0.42, -0.05)), _circle(0.5, (0.42, -0.05)))
    walls = _polygon((-0.75, -0.2), (0.75, -0.2), (0.75, 0.95), (-0.75, 0.95))
    roof = _polygon((-1.0, -0.15), (0.0, -1.0), (1.0, -0.15))
    door = _polygon((-0.2, 0.3), (0.2, 0.3), (0.2, 0.95), (-0.2, 0.95))
    tail = _polygon((0.5, 0.0), (1.1, -0.55), (1.0, 0.0), (1.1, 0.55))
    flank, eye = _circle(0.85, (-0.15, 0), 0.68), _circle(0.11, (-0.6, -0.15))
    shapes = {
        "ball": [Part((_circle(),))],
        "box": [Part((box,))],
        "cone": [Part((slope,)), Part((_circle(0.9, (0, 0.75), 0.25),))],
        "star": [Part((_star(),))],
        "heart": [Part((_heart(),))],
        "tree": [Part((trunk,), (104, 70, 42))] + [Part((leaf,)) for leaf in leaves],
        "house": [Part((walls,)), Part((roof,), (96, 66, 58)), Part((door,), (60, 46, 40))],
        "fish": [Part((tail,)), Part((flank,)), Part((eye,), (20, 20, 24))],
    }
    return tuple(shapes[kind])


def _coverage(polygons, centre, radius, angle, size: int) -> Float[np.ndarray, "S S"]:
    """Return the share of each pixel covered by the transformed polygons."""
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, sin], [-sin, cos]])
    fine = size * _SUPERSAMPLING
    points = [(p @ turn * radius + np.array(centre)) * fine - 0.5 for p in polygons]
    canvas = np.zeros((fine, fine), np.uint8)
    # With 4 bits of fractions of a pixel, which `shift` declares.
    cv2.fillPoly(canvas, [np.round(p * 16).astype(np.int32) for p in points], 255, shift=4)
    share = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
    return share.astype(np.float32) / 255


@functools.cache
def _fill(kind: str) -> float:
    """Return the share of its bounding circle that a kind of thing fills."""
    layers = [_coverage(p.polygons, (0.5, 0.5), 0.25, 0.0, 128) for p in _shape(kind)]
    return float((np.max(layers, 0) > 0.5).sum() / (np.pi * 32**2))


def _recolour(colour: str, hue_shift: float, rng: np.random.Generator) -> np.ndarray:
    """Return a random shade of a colour, RGB."""
    rgb = np.array([[COLOURS[colour]]], np.uint8)
    hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV).astype(float)
    hsv += rng.normal(0, 1, 3) * (3, 14, 14) + (hue_shift, 0, 0)
    # Hue is a circle, of 180 steps in OpenCV's bytes.
    hsv[..., 0] %= 180
    shade = np.clip(hsv, 0, 255).astype(np.uint8)
    return cv2.cvtColor(shade, cv2.COLOR_HSV2RGB)[0, 0].astype(np.float32)


def _surface(kind: str, u, v, rng: np.random.Generator):
    """Return the brightness of the surface relief that is typical of a kind of thing."""
    radius = np.hypot(u, v)
    if kind == "ball":
        return 1.1 - 0.45 * (np.sin(3 * np.arctan2(v, u)) > 0)
    if kind == "box":
        return 1.1 - 0.5 * ((np.maximum(abs(u), abs(v)) > 0.58) | (abs(u - v) < 0.14))
    if kind == "cone":
        return 1.1 - 0.5 * ((v * 2.2) % 1 < 0.4)
    if kind == "star":
        return 1.3 - 0.7 * radius
    if kind == "heart":
        return 0.7 + 0.45 * (u**2 + (v + 0.1) ** 2 < 0.3)
    if kind == "tree":
        return 1 + 0.3 * _noise(u.shape, (24.0, 24.0), rng)
    if kind == "house":
        joints = ((v * 4) % 1 < 0.22) | ((u * 2.5 + 0.5 * (np.floor(v * 4) % 2)) % 1 < 0.14)
        return 1.1 - 0.4 * joints
    return 1.1 - 0.4 * (np.sin(u * 12) * np.sin(v * 12) > 0.2)  # a fish's scales


def _material(thing: Thing, u, v, scale: float, rng: np.random.Generator):
    """Return the weight of the thing's main colour at every pixel, against its second colour."""
    if thing.material == "striped":
        turn = rng.uniform(0, np.pi)
        return np.sin((u * np.cos(turn) + v * np.sin(turn)) * rng.uniform(8, 12) / scale) > -0.2
    if thing.material == "spotted":
        cells = rng.uniform(2.2, 3.0) / scale
        du, dv = (u * cells) % 1 - 0.5, (v * cells) % 1 - 0.5
        return du**2 + dv**2 > 0.09
    if thing.material == "checkered":
        cells = rng.uniform(2.0, 2.8) / scale
        return (np.floor(u * cells) + np.floor(v * cells)) % 2 == 0
    if thing.material == "wooden":
        knots = u + 0.25 * np.sin(v * rng.uniform(2, 4) + rng.uniform(0, 6))
        return 0.75 + 0.25 * np.sin(knots * rng.uniform(16, 22) / scale)
    return np.ones_like(u)


def _draw_thing(image, thing: Thing, x, y, light: float, scale: float, rng):
    """Paint `thing` into `image`; return its coverage."""
    size = x.shape[0]
    dx, dy = (x - thing.centre[0]) / thing.radius, (y - thing.centre[1]) / thing.radius
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    # Turned back into the thing's own frame.
    u, v = dx * cos + dy * sin, dy * cos - dx * sin
    body = _recolour(thing.colour, thing.hue_shift, rng)
    bright = body.mean() > 110
    second = body * 0.35 if bright else 0.4 * body + 130
    keep = np.asarray(_material(thing, u, v, scale, rng), np.float32)[..., None]
    body_pixels = body * keep + second * (1 - keep)
    towards = dx * np.cos(light) + dy * np.sin(light)
    shade = _surface(thing.kind, u, v, rng) * (1 - 0.22 * np.clip(towards, -1.2, 1.2))
    if thing.kind == "ball":
        shade -= 0.18 * np.clip(dx**2 + dy**2, 0, 1)
    shine = np.zeros_like(shade)
    if thing.material == "shiny":
        hx, hy = dx + 0.4 * np.cos(light), dy + 0.4 * np.sin(light)
        shine = 170 * np.exp(-(hx**2 + hy**2) / 0.06)
    total = np.zeros_like(x)
    for part in _shape(thing.kind):
        alpha = _coverage(part.polygons, thing.centre, thing.radius, thing.angle, size)
        pixels = body_pixels if part.paint is None else np.array(part.paint, np.float32)
        lit = pixels * shade[..., None] + shine[..., None]
        image += alpha[..., None] * (lit - image)
        total = np.maximum(total, alpha)
    return total
