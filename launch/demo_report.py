"""The demo's report: what the models score, and what they make of the first test scenes."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from ml_collections import ConfigDict

from groupvit_jax.data.sources.masks import TfdsMasks
from groupvit_jax.data.sources.pairs import TfdsSource
from groupvit_jax.eval.evaluators import make_evaluators
from groupvit_jax.interop.load import load_pretrained
from groupvit_jax.interop.pretrained import Pretrained
from groupvit_jax.report import document, visualize
from groupvit_jax.runs.metrics_file import read_metrics
from groupvit_jax.scenes import dataset
from groupvit_jax.segmenter import SegmentationResult, Segmenter
from groupvit_jax.train import setup
from groupvit_jax.typing import Params

UNTRAINED = "nothing (untrained)"
SHOWN = 16  # scenes in the report
COMPARED = 6  # of which the pictures of all models are shown
CANDIDATES = 128  # scenes among which those of the README's picture are the best

_SCORES = {
    "test/miou": "test: mIoU %",
    "test/pixel_accuracy": "test: pixels right %",
    "shifted/miou": "shifted: mIoU %",
    "shifted/pixel_accuracy": "shifted: pixels right %",
}
_INTRODUCTION = (
    "A small GroupViT was trained for {steps} steps on drawn scenes and their captions. No mask, "
    "no list of classes reached the training. The masks below, and the names of the classes, are "
    "used only here. The shifted scenes have other sizes, hues and textures than those of training."
)
_CONTROLS = (
    "To compare with: a model that shares each patch among groups (soft) instead of giving it to "
    "one; one that learnt from captions of other scenes, in which nothing says what is where; one "
    "that learnt nothing; and the first with a segment head, taught by {steps} steps with masks."
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run of the demo: what the model learnt from, its folder and its configuration."""

    name: str
    workdir: Path
    config: ConfigDict

    @property
    def history(self) -> list[dict[str, Any]]:
        """The metrics of its steps."""
        return read_metrics(self.workdir)


class Scene(NamedTuple):
    """A test scene and what the models make of it.

    Attributes:
      image: the pixels.
      caption: what is in it.
      truth: class of every pixel.
      found: run's name -> the segmentation; the run that learnt from captions is the first.
    """

    image: np.ndarray
    caption: str
    truth: np.ndarray
    found: dict[str, SegmentationResult]

    @property
    def first(self) -> SegmentationResult:
        """The segmentation that was learnt from captions."""
        return next(iter(self.found.values()))

    @property
    def accuracy(self) -> float:
        """Share of the pixels that it labels rightly."""
        return float((self.truth == self.first.mask).mean())


def write(runs: Sequence[Run], workdir: Path) -> str:
    """Writes report.html and scenes.png into the demo's folder; returns a summary.

    Args:
      runs: complete ones, that from captions first.
      workdir: of the demo.
    """
    models = {run.name: load_pretrained(run.workdir) for run in runs}
    scores = {run.name: run.history[-1] for run in runs}
    captions = runs[0]
    fresh = setup.build(captions.config, captions.workdir).fresh_state()
    variables = {"params": fresh.params, "batch_stats": fresh.batch_stats}
    models[UNTRAINED] = models[captions.name]._replace(variables=variables)
    scores[UNTRAINED] = _scores_of(captions, variables)
    segmented = _test_scenes(captions.config, models)
    document.write(workdir / "report.html", _page(runs, scores, segmented))
    best = sorted(segmented, key=lambda scene: -scene.accuracy)[:3]
    (workdir / "scenes.png").write_bytes(visualize.png(poster(best)))
    lines = (f"{values['test/miou']:7.1%}  {name}" for name, values in scores.items())
    head, tail = "Test mIoU of what was learnt from", f"Report: {workdir / 'report.html'}"
    return "\n".join((head, *lines, tail))


def _scores_of(run: Run, variables: Params) -> dict[str, float]:
    """Evaluates other variables as the run's were at its end."""
    parts = setup.build(run.config, run.workdir)
    evaluators = make_evaluators(run.config, parts.model, parts.tokenizer, parts.mesh)
    return {
        f"{evaluator.name}/{metric}": value
        for evaluator, _ in evaluators
        for metric, value in evaluator(variables).items()
    }


def _test_scenes(config: ConfigDict, models: dict[str, Pretrained]) -> list[Scene]:
    """Segments the first test scenes: `COMPARED` by each model, `CANDIDATES` by the first."""
    source = config.evaluators.test.source
    opened = source.name, source.split, source.data_dir
    masked, pairs = TfdsMasks(*opened), TfdsSource(*opened)
    size = config.model.image.image_size
    count = min(CANDIDATES, len(masked))
    images, truths = zip(*(masked[i] for i in range(count)), strict=True)
    found: list[dict[str, SegmentationResult]] = [{} for _ in images]
    for number, (name, model) in enumerate(models.items()):
        segmenter = Segmenter(model, resize=(), window=size, stride=size, windows_at_once=64)
        labels = segmenter.class_names or dataset.CLASS_NAMES
        few = images if number == 0 else images[:COMPARED]
        for results, result in zip(found, segmenter.batch(few, labels), strict=False):
            results[name] = result
    captions = [pairs[i]["captions"][0] for i in range(count)]
    return [Scene(*parts) for parts in zip(images, captions, truths, found, strict=True)]


def _page(
    runs: Sequence[Run], scores: dict[str, dict[str, float]], segmented: Sequence[Scene]
) -> str:
    captions, masks = runs[0], runs[-1]
    classes, colours = dataset.CLASS_NAMES, visualize.palette(len(dataset.CLASS_NAMES))
    curves = {run.name: _curve(run, "validation/miou", 100) for run in runs}
    losses = ("global/loss", "multi_label/loss", "local/loss")
    shown, compared = segmented[:SHOWN], segmented[:COMPARED]
    percent = {
        name: [100 * values.get(key, float("nan")) for key in _SCORES]
        for name, values in scores.items()
    }
    per_class = [
        (name, *(100 * values.get(f"test/iou/{name}", float("nan")) for values in scores.values()))
        for name in classes
    ]
    return document.page(
        "Segmentation that emerged from captions",
        [
            document.paragraph(_INTRODUCTION.format(steps=captions.config.train.num_steps)),
            document.paragraph(_CONTROLS.format(steps=masks.config.train.num_steps)),
            document.table(
                ["learnt from", *_SCORES.values()],
                [(name, *values) for name, values in percent.items()],
            ),
            document.heading(f"The first {len(shown)} test scenes, none left out"),
            document.legend(classes, colours),
            document.scenes(
                ["scene", "groups", "segmentation", "truth"],
                [(_panels(scene, 3), scene.caption) for scene in shown],
            ),
            document.heading("What other models make of the first of them"),
            document.scenes(
                ["scene", *scores, "truth"],
                [(_comparison(scene, 3), scene.caption) for scene in compared],
            ),
            document.heading("While it learnt"),
            document.line_chart(
                "Training losses", {name: _curve(captions, name) for name in losses}
            ),
            document.line_chart("Validation mIoU in per cent", curves),
            document.heading("Intersection over union of every class, in per cent, test scenes"),
            document.table(["class", *scores], per_class),
        ],
    )


def _curve(run: Run, name: str, factor: float = 1.0) -> list[tuple[float, float]]:
    found = ((line["step"], line.get(name)) for line in run.history)
    return [(float(step), factor * value) for step, value in found if value is not None]


def _over(scene: Scene, labels: np.ndarray, count: int, factor: int) -> np.ndarray:
    """The enlarged scene with labels painted over."""
    large, labels = (visualize.enlarge(x, factor) for x in (scene.image, labels))
    return visualize.overlay(large, labels, visualize.palette(count))


def _panels(scene: Scene, factor: int) -> list[np.ndarray]:
    """Scene, groups of each stage, segmentation and truth."""
    classes = len(dataset.CLASS_NAMES)
    return [
        visualize.enlarge(scene.image, factor),
        *(_over(scene, groups, int(groups.max()) + 1, factor) for groups in scene.first.groups),
        _over(scene, scene.first.mask, classes, factor),
        _over(scene, scene.truth, classes, factor),
    ]


def _comparison(scene: Scene, factor: int) -> list[np.ndarray]:
    """Scene, the segmentation of each model and truth."""
    masks = [*(result.mask for result in scene.found.values()), scene.truth]
    painted = [_over(scene, mask, len(dataset.CLASS_NAMES), factor) for mask in masks]
    return [visualize.enlarge(scene.image, factor), *painted]


def poster(best: Sequence[Scene], factor: int = 4) -> np.ndarray:
    """A picture for the README: a row a scene, its caption below."""
    rows = []
    for scene in best:
        image, groups, segmentation, _ = _panels(scene, factor)
        labels = visualize.enlarge(scene.first.mask, factor)
        named = visualize.write_names(segmentation, labels, dataset.CLASS_NAMES)
        row = visualize.grid([[image, groups, named]])
        strip = np.full((32, row.shape[1], 3), 255, np.uint8)
        place, font = (2, 20), cv2.FONT_HERSHEY_SIMPLEX
        scale = min(0.55, 0.55 * (row.shape[1] - 4) / (len(scene.caption) * 9.5))
        cv2.putText(strip, scene.caption, place, font, scale, (40, 40, 40), 1, cv2.LINE_AA)
        rows += [row, strip]
    return np.concatenate(rows)
