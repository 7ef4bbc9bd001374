"""The demo's report: scores of the models and their segmentations of the first test scenes."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from groupvit_jax.data.sources.masks import TfdsMasks
from groupvit_jax.data.sources.pairs import TfdsSource
from groupvit_jax.eval.evaluators import make_evaluators
from groupvit_jax.interop.load import load_pretrained
from groupvit_jax.interop.pretrained import Pretrained
from groupvit_jax.report import lettering, visualize
from groupvit_jax.report.visualize import RgbImage
from groupvit_jax.runs.metrics_file import read_metrics
from groupvit_jax.scenes import dataset
from groupvit_jax.segmenter import SegmentationResult, Segmenter
from groupvit_jax.train import setup
from groupvit_jax.typing import Params

UNTRAINED = "nothing (untrained)"
SHOWN = 16  # scenes on the page
COMPARED = 6  # scenes shown as segmented by every model
CANDIDATES = 128  # scenes to choose the best three from, for the README's picture

_SCORES = {
    "test/miou": "test: mIoU %",
    "test/pixel_accuracy": "test: pixels right %",
    "shifted/miou": "shifted: mIoU %",
    "shifted/pixel_accuracy": "shifted: pixels right %",
}


Rows = list[tuple[list[str], str]]  # data URLs of pictures and the text below


@dataclasses.dataclass(frozen=True)
class DemoRun:
    """A training run of the demo: its source of supervision, folder and configuration."""

    name: str
    workdir: Path
    config: ConfigDict

    @property
    def history(self) -> list[dict[str, Any]]:
        """The recorded metrics by step."""
        return read_metrics(self.workdir)


class Scene(NamedTuple):
    """A test scene and its segmentations.

    Attributes:
      image: RGB image.
      caption: its caption.
      truth: true class of each pixel.
      found: segmentation by name of the run; the run trained on captions comes first.
    """

    image: np.ndarray
    caption: str
    truth: np.ndarray
    found: dict[str, SegmentationResult]

    @property
    def first(self) -> SegmentationResult:
        """The segmentation of the run trained on captions."""
        return next(iter(self.found.values()))

    @property
    def accuracy(self) -> float:
        """Pixel accuracy of `first`."""
        return float((self.truth == self.first.mask).mean())


def write(runs: Sequence[DemoRun], workdir: Path) -> str:
    """Write report.html and scenes.png into the demo's folder; return a summary.

    Args:
      runs: finished runs, the one trained on captions first.
      workdir: folder of the demo.
    """
    models = {run.name: load_pretrained(run.workdir) for run in runs}
    scores = {run.name: run.history[-1] for run in runs}
    captions = runs[0]
    fresh = setup.build(captions.config, captions.workdir).fresh_state()
    variables = {"params": fresh.params, "batch_stats": fresh.batch_stats}
    models[UNTRAINED] = models[captions.name]._replace(variables=variables)
    scores[UNTRAINED] = _scores_of(captions, variables)
    size = captions.config.model.image.image_size
    segmented = _test_scenes(captions.config.evaluators.test.source, size, models)
    _write_page(workdir / "report.html", runs, scores, segmented)
    best = sorted(segmented, key=lambda scene: -scene.accuracy)[:3]
    (workdir / "scenes.png").write_bytes(visualize.png(poster(best)))
    lines = (f"{values['test/miou']:7.1%}  {name}" for name, values in scores.items())
    head, tail = "Test mIoU of what was learnt from", f"Report: {workdir / 'report.html'}"
    return "\n".join((head, *lines, tail))


def _scores_of(run: DemoRun, variables: Params) -> dict[str, float]:
    """Evaluate variables with the evaluators of a run."""
    parts = setup.build(run.config, run.workdir)
    evaluators = make_evaluators(run.config, parts.model, parts.tokenizer, parts.mesh)
    return {
        f"{evaluator.name}/{metric}": value
        for evaluator, _ in evaluators
        for metric, value in evaluator(variables).items()
    }


def _test_scenes(source: Any, size: int, models: dict[str, Pretrained]) -> list[Scene]:
    """Segment the first test scenes: `COMPARED` by each model, `CANDIDATES` by the first."""
    opened = source.name, source.split, source.data_dir
    masked, pairs = TfdsMasks(*opened), TfdsSource(*opened)
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


def _write_page(
    path: Path,
    runs: Sequence[DemoRun],
    scores: dict[str, dict[str, float]],
    segmented: Sequence[Scene],
) -> None:
    # Imported when a page is written: Matplotlib would slow down the start of the command.
    from groupvit_jax.report import charts, document

    captions, classes = runs[0], dataset.CLASS_NAMES
    palette = visualize.palette(len(classes)).tolist()

    def percent(key: str) -> list[float]:
        return [100 * values.get(key, float("nan")) for values in scores.values()]

    def pictures(scenes: Sequence[Scene], panels: Callable[[Scene, int], list[RgbImage]]) -> Rows:
        return [([document.data_url(p) for p in panels(s, 3)], s.caption) for s in scenes]

    losses = ("global/loss", "multi_label/loss", "local/loss")
    document.write(
        path,
        "demo",
        title="Segmentation that emerged from captions",
        steps=captions.config.train.num_steps,
        mask_steps=runs[-1].config.train.num_steps,
        models=list(scores),
        scores_header=["learnt from", *_SCORES.values()],
        scores=list(zip(scores, *map(percent, _SCORES), strict=True)),
        colours={name: f"rgb{tuple(rgb)}" for name, rgb in zip(classes, palette, strict=True)},
        shown=pictures(segmented[:SHOWN], _panels),
        compared=pictures(segmented[:COMPARED], _comparison),
        charts=[
            charts.line_chart("Training losses", {name: _curve(captions, name) for name in losses}),
            charts.line_chart(
                "Validation mIoU in per cent",
                {run.name: _curve(run, "validation/miou", 100) for run in runs},
            ),
        ],
        class_iou=[(name, *percent(f"test/iou/{name}")) for name in classes],
    )


def _curve(run: DemoRun, name: str, factor: float = 1.0) -> list[tuple[float, float]]:
    found = ((line["step"], line.get(name)) for line in run.history)
    return [(float(step), factor * value) for step, value in found if value is not None]


def _over(scene: Scene, labels: np.ndarray, count: int, factor: int) -> RgbImage:
    """The enlarged scene with labels painted over."""
    large, labels = (visualize.enlarge(x, factor) for x in (scene.image, labels))
    return visualize.overlay(large, labels, visualize.palette(count))


def _panels(scene: Scene, factor: int) -> list[RgbImage]:
    """Scene, groups of each stage, segmentation and truth."""
    classes = len(dataset.CLASS_NAMES)
    return [
        visualize.enlarge(scene.image, factor),
        *(_over(scene, groups, int(groups.max()) + 1, factor) for groups in scene.first.groups),
        _over(scene, scene.first.mask, classes, factor),
        _over(scene, scene.truth, classes, factor),
    ]


def _comparison(scene: Scene, factor: int) -> list[RgbImage]:
    """Scene, the segmentation of each model and truth."""
    masks = [*(result.mask for result in scene.found.values()), scene.truth]
    painted = [_over(scene, mask, len(dataset.CLASS_NAMES), factor) for mask in masks]
    return [visualize.enlarge(scene.image, factor), *painted]


def poster(best: Sequence[Scene], factor: int = 4) -> RgbImage:
    """Draw the README's picture: a row for each scene, its caption below."""
    rows = []
    for scene in best:
        image, groups, segmentation, _ = _panels(scene, factor)
        labels = visualize.enlarge(scene.first.mask, factor)
        named = visualize.write_names(segmentation, labels, dataset.CLASS_NAMES)
        row = visualize.grid([[image, groups, named]])
        strip = np.full((32, row.shape[1], 3), 255, np.uint8)
        lettering.ink(strip[:26], lettering.fit(scene.caption, 15, row.shape[1]))
        rows += [row, strip]
    return np.concatenate(rows)
