"""The embedded data set: drawn scenes with captions, and masks that only evaluation reads.

This TFDS builder downloads nothing and doesn't need TensorFlow:

    python -m groupvit_jax.scenes.dataset data
"""

import dataclasses
import io
import sys
from collections.abc import Iterator
from typing import Any, ClassVar

import cv2
import numpy as np
import tensorflow_datasets as tfds

from groupvit_jax.scenes.descriptions import caption
from groupvit_jax.scenes.drawing import (
    CLASS_NAMES,
    COLOURS,
    MATERIALS,
    STUFF_LOOKS,
    THINGS,
    UPRIGHT,
    USUAL_COLOURS,
    Drawing,
    Scene,
    Stuff,
    Thing,
    draw,
)

__all__ = [
    "CLASS_NAMES",
    "SceneConfig",
    "Scenes",
    "build",
    "make_builder",
    "make_example",
    "sample_scene",
]

# Split -> its stream of random numbers. "shifted" is drawn in another style.
SPLITS = ("train", "validation", "test", "shifted")


@dataclasses.dataclass
class SceneConfig(tfds.core.BuilderConfig):
    """All settings that determine the data.

    Attributes:
      size: side of the square images, in pixels.
      seed: seed of all random numbers.
      num_train: examples in `train`.
      num_eval: examples in each of the other splits.
    """

    size: int = 64
    seed: int = 0
    num_train: int = 16_000
    num_eval: int = 500


@dataclasses.dataclass(frozen=True)
class Style:
    """The settings in which the shifted split differs from the others.

    Attributes:
      radii: range of the radius of a single thing, as fractions of the side.
      hue_shift: added to the hue of things, out of 180.
      texture_scale: range of the scale of texture details.
      tilt: range of the slope of a horizon to either side, in radians.
      unusual_colours: share of things with a random colour instead of their kind's usual one.
    """

    radii: tuple[float, float] = (0.27, 0.42)
    hue_shift: float = 0.0
    texture_scale: tuple[float, float] = (0.8, 1.25)
    tilt: tuple[float, float] = (0.0, 0.15)
    unusual_colours: float = 0.1


USUAL = Style()
SHIFTED = Style((0.2, 0.32), 7.0, (1.6, 2.2), (0.2, 0.4), unusual_colours=0.5)


def sample_scene(rng: np.random.Generator, style: Style = USUAL) -> Scene:
    """Samples a scene: background, things and their positions."""
    stuff, angle = _sample_stuff(rng, style)
    return Scene(
        stuff=stuff,
        border=(0.5, rng.uniform(0.3, 0.7)),
        border_angle=angle,
        things=_sample_things(rng, style),
        texture_scale=rng.uniform(*style.texture_scale),
    )


def _sample_stuff(rng: np.random.Generator, style: Style) -> tuple[tuple[Stuff, ...], float]:
    count = 1 if rng.random() < 0.2 else 2
    kinds = [str(k) for k in rng.choice(list(STUFF_LOOKS), count, replace=False)]
    kinds.sort(key=("sky", "brick").index if set(kinds) == {"sky", "brick"} else _is_floor)
    upright = kinds[0] in ("sky", "brick")
    tilt = rng.uniform(*style.tilt) * rng.choice((-1, 1))
    looks = [str(rng.choice(list(STUFF_LOOKS[kind]))) for kind in kinds]
    stuff = tuple(Stuff(*pair) for pair in zip(kinds, looks, strict=True))
    return stuff, float(tilt if upright else rng.uniform(-np.pi, np.pi))


def _is_floor(kind: str) -> bool:
    return kind not in ("sky", "brick")


def _sample_things(rng: np.random.Generator, style: Style) -> tuple[Thing, ...]:
    count = int(rng.choice((1, 2, 3), p=(0.45, 0.4, 0.15)))
    shrink = (1.0, 0.85, 0.75)[count - 1]
    alike = count > 1 and rng.random() < 0.3
    things: list[Thing] = []
    looks = _sample_look(rng, style)
    for _ in range(count):
        looks = looks if alike else _sample_look(rng, style)
        radius = rng.uniform(*style.radii) * shrink
        centre = _free_place(rng, radius, things)
        angle = rng.normal(0, 0.2) if looks[0] in UPRIGHT else rng.uniform(-np.pi, np.pi)
        things.append(Thing(*looks, centre, radius, angle, style.hue_shift))
    return tuple(things)


def _sample_look(rng: np.random.Generator, style: Style) -> tuple[str, str, str]:
    kind = str(rng.choice(THINGS))
    unusual = rng.random() < style.unusual_colours
    colour = str(rng.choice(list(COLOURS))) if unusual else USUAL_COLOURS[kind]
    return kind, colour, str(rng.choice(MATERIALS)) if rng.random() < 0.25 else "plain"


def _free_place(rng: np.random.Generator, radius: float, others: list[Thing]):
    """Return the emptiest of a few random places, so that things are only partly occluded."""
    places = rng.uniform(min(radius, 0.3), max(1 - radius, 0.7), (4, 2))
    if not others:
        return tuple(places[0])
    gaps = [
        min(np.hypot(*(place - other.centre)) / (radius + other.radius) for other in others)
        for place in places
    ]
    return tuple(places[int(np.argmax(gaps))])


def make_example(config: SceneConfig, split: str, index: int) -> tuple[Scene, Drawing, str]:
    """Return example `index` of a split: a pure function of its arguments."""
    # A stream for each example: splits can be drawn in any order and to any length.
    rng = np.random.default_rng([config.seed, SPLITS.index(split), index])
    scene = sample_scene(rng, SHIFTED if split == "shifted" else USUAL)
    drawing = draw(scene, config.size, rng)
    return scene, drawing, caption(scene, drawing.visible, rng)


class Scenes(tfds.core.GeneratorBasedBuilder):
    """Scenes of things in front of stuff. A mask's values are indices into `CLASS_NAMES`."""

    __module__ = "groupvit_jax.scenes.dataset"  # for TFDS, also in runs as __main__
    VERSION = tfds.core.Version("2.0.0")
    BUILDER_CONFIGS: ClassVar[list[SceneConfig]] = [
        SceneConfig(name="small", description="64 x 64 pixels"),
        SceneConfig(name="miniature", description="for tests", size=32, num_train=128, num_eval=32),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.size
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
                    "caption": tfds.features.Text(),
                    "mask": tfds.features.Image(shape=(size, size, 1), encoding_format="png"),
                }
            ),
            description=__doc__,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager  # nothing is downloaded
        counts = dict.fromkeys(SPLITS, self.builder_config.num_eval)
        counts["train"] = self.builder_config.num_train
        return {split: self._generate_examples(split, counts[split]) for split in SPLITS}

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(count):
            _, drawing, text = make_example(self.builder_config, split, index)
            image = _png(drawing.image[..., ::-1])  # OpenCV's channel order
            yield index, {"image": image, "caption": text, "mask": _png(drawing.mask)}


def _png(pixels: np.ndarray) -> io.BytesIO:
    return io.BytesIO(cv2.imencode(".png", pixels)[1].tobytes())


def build(data_dir: str, config: str | SceneConfig = "small") -> Scenes:
    """Build the data set below `data_dir` unless it exists; return its builder."""
    builder = make_builder(data_dir, config)
    builder.download_and_prepare()
    return builder


def make_builder(data_dir: str, config: str | SceneConfig = "small") -> Scenes:
    """Return the builder of the data set below `data_dir`; nothing is written."""
    return Scenes(data_dir=data_dir, config=config, file_format="array_record")


if __name__ == "__main__":
    build(*sys.argv[1:])
