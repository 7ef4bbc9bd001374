"""Pictures of the demo: its test scenes as the model segments them, during and after training."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from groupvit_jax.data.sources.masks import TfdsMasks
from groupvit_jax.data.sources.pairs import TfdsSource
from groupvit_jax.eval.evaluators import make_encoder
from groupvit_jax.eval.inference import WindowEncoder
from groupvit_jax.eval.protocol import make_protocol
from groupvit_jax.eval.segment_images import ImageSegmenter
from groupvit_jax.report import lettering, visualize
from groupvit_jax.report.visualize import RgbImage
from groupvit_jax.runs.files import replace_bytes
from groupvit_jax.scenes import dataset
from groupvit_jax.train import setup
from groupvit_jax.train.hooks import Hook, StepContext
from groupvit_jax.typing import Int, Params, UInt8

FOLDER = "progress"  # below the demo's folder
EVERY_STEPS = 50
SHOWN = 16  # scenes on the page and in every snapshot

_FRAME_MS, _LAST_FRAME_MS = 450, 4000


class Segments(NamedTuple):
    """A model's segmentation of a scene: class of each pixel, and its group in each stage."""

    mask: Int[np.ndarray, "H W"]
    groups: tuple[Int[np.ndarray, "H W"], ...]


class Scene(NamedTuple):
    """A test scene: RGB image, caption and true class of each pixel."""

    image: UInt8[np.ndarray, "H W 3"]
    caption: str
    truth: UInt8[np.ndarray, "H W"]


def read_scenes(source: Any, count: int) -> list[Scene]:
    """Return the first scenes of a set (`name`, `split`, `data_dir`), at most `count`."""
    opened = source.name, source.split, source.data_dir
    masked, pairs = TfdsMasks(*opened), TfdsSource(*opened)
    examples = ((masked[i], pairs[i]["captions"][0]) for i in range(min(count, len(masked))))
    return [Scene(image, caption, truth) for (image, truth), caption in examples]


def knobs_of(evaluator: ConfigDict) -> dict[str, Any]:
    """Return the windows and the refinement of an evaluator: pictures show what it scores."""
    return {name: evaluator[name] for name in ("resize", "window", "stride", "pamr_iterations")}


class Snapshots(Hook):
    """Segments the first test scenes after step 1 and every few steps, and keeps the result.

    Each snapshot is a small file of its own, so that a resumed demo still has the earlier ones.
    """

    def __init__(self, parts: setup.Parts, folder: Path, show: Callable[[int], None]) -> None:
        """Take the parts of a run, the folder for the files, and what to call with the step."""
        test = parts.config.evaluators.test
        self._images = [s.image for s in read_scenes(test.source, SHOWN)]
        # One segmenter for the whole run: another one would compile the model again.
        self._encoder = make_encoder(parts.model, parts.tokenizer, (), parts.mesh)
        self._protocol = make_protocol("groupvit", has_background=False, **knobs_of(test))
        windows = WindowEncoder(self._encoder, self._protocol, views=True, windows_at_once=SHOWN)
        self._segment = ImageSegmenter(windows)
        self._folder, self._show = folder, show

    def after_step(self, context: StepContext) -> None:
        """Segment the scenes if it is due."""
        if context.step == 1 or context.step % EVERY_STEPS == 0 or context.is_last:
            segments = self._segments(context.state.variables)
            write_snapshot(self._folder, context.step, segments)
            self._show(context.step)

    def _segments(self, variables: Params) -> list[Segments]:
        prompts = self._protocol.prompts
        text = self._encoder.class_embeddings(variables, dataset.CLASS_NAMES, prompts)
        found = self._segment(variables, text, self._images)
        return [Segments(result.mask, result.groups) for result in found]


def write_snapshot(folder: Path, step: int, segments: Sequence[Segments]) -> None:
    """Keep the segmentations of the first scenes after a step."""
    folder.mkdir(parents=True, exist_ok=True)
    masks = np.stack([of_scene.mask for of_scene in segments]).astype(np.uint8)
    groups = np.stack([np.stack(of_scene.groups) for of_scene in segments]).astype(np.uint8)
    file = io.BytesIO()
    np.savez_compressed(file, masks=masks, groups=groups)
    replace_bytes(folder / f"{step:06d}.npz", file.getvalue())


def read_snapshots(folder: Path) -> dict[int, list[Segments]]:
    """Return what `write_snapshot` has kept, by step in ascending order."""
    snapshots = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as file:
            pairs = zip(file["masks"], file["groups"], strict=True)
            snapshots[int(path.stem)] = [Segments(mask, tuple(groups)) for mask, groups in pairs]
    return snapshots


def over(scene: Scene, labels: np.ndarray, count: int, factor: int) -> RgbImage:
    """Return the enlarged scene with labels painted over."""
    large, labels = (visualize.enlarge(x, factor) for x in (scene.image, labels))
    return visualize.overlay(large, labels, visualize.palette(count))


def panels(scene: Scene, segments: Segments, factor: int) -> list[RgbImage]:
    """Return scene, groups of each stage, segmentation and truth."""
    classes = len(dataset.CLASS_NAMES)
    return [
        visualize.enlarge(scene.image, factor),
        *(over(scene, groups, int(groups.max()) + 1, factor) for groups in segments.groups),
        over(scene, segments.mask, classes, factor),
        over(scene, scene.truth, classes, factor),
    ]


def poster(scenes: Sequence[tuple[Scene, Segments]], factor: int = 4) -> RgbImage:
    """Draw a row for each scene, with groups and named segmentation, its caption below."""
    rows = []
    for scene, segments in scenes:
        image, groups, segmentation, _ = panels(scene, segments, factor)
        labels = visualize.enlarge(segments.mask, factor)
        named = visualize.write_names(segmentation, labels, dataset.CLASS_NAMES)
        row = visualize.grid([[image, groups, named]])
        strip = np.full((32, row.shape[1], 3), 255, np.uint8)
        lettering.ink(strip[:26], lettering.fit(scene.caption, 15, row.shape[1]))
        rows += [row, strip]
    return np.concatenate(rows)


def animation(scenes: Sequence[Scene], snapshots: Mapping[int, Sequence[Segments]]) -> bytes:
    """Draw segments emerging during training, as an animated WebP.

    Shows the three of the scenes with the best segmentation in the last snapshot.

    Args:
      scenes: those of the snapshots.
      snapshots: segmentations of the scenes by step.
    """
    last = snapshots[max(snapshots)]
    right = [(s.mask == scene.truth).mean() for scene, s in zip(scenes, last, strict=True)]
    best = np.argsort(right)[::-1][:3].tolist()
    frames = []
    for step, segments in snapshots.items():
        picture = poster([(scenes[i], segments[i]) for i in best])
        title = "after the first step" if step == 1 else f"after {step} steps"
        frames.append(Image.fromarray(visualize.caption(picture, title)))
    file = io.BytesIO()
    frames[0].save(
        file,
        "WEBP",
        save_all=True,
        append_images=frames[1:],
        duration=[_FRAME_MS] * (len(frames) - 1) + [_LAST_FRAME_MS],
        loop=0,
        quality=70,
        method=6,
    )
    return file.getvalue()
