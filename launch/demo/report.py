"""The demo's report: segmentations of the first test scenes during training, scores at the end."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from groupvit_jax.eval.evaluators import make_evaluators
from groupvit_jax.interop.load import load_pretrained
from groupvit_jax.interop.pretrained import Pretrained
from groupvit_jax.report import visualize
from groupvit_jax.report.visualize import RgbImage
from groupvit_jax.runs.files import replace_bytes, replace_text
from groupvit_jax.runs.metrics_file import read_metrics
from groupvit_jax.scenes import dataset
from groupvit_jax.segmenter import Segmenter
from groupvit_jax.train import setup
from groupvit_jax.typing import Params
from launch.demo import pictures
from launch.demo.pictures import Scene, Segments

UNTRAINED = "nothing (untrained)"
COMPARED = 6  # scenes shown as segmented by every model
CANDIDATES = 128  # scenes to choose the best three from, for scenes.png
EXAMPLES = 8  # scenes that are also written as files
FILM = 7  # steps shown of the scenes of the film strip

_PAGE, _PICTURE, _ANIMATION, _EXAMPLES = "report.html", "scenes.png", "emerging.webp", "examples"
_SCORES = {
    "test/miou": "test: mIoU %",
    "test/pixel_accuracy": "test: pixels right %",
    "shifted/miou": "shifted: mIoU %",
    "shifted/pixel_accuracy": "shifted: pixels right %",
}
_LOSSES = ("global/loss", "multi_label/loss", "local/loss")

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

    @property
    def is_complete(self) -> bool:
        """Whether the metrics of the last step are there."""
        if not self.workdir.is_dir():
            return False
        steps = [line["step"] for line in self.history]
        return bool(steps) and steps[-1] == self.config.train.num_steps


class _Segmented(NamedTuple):
    """A test scene with its segmentation by each model, the one trained on captions first."""

    scene: Scene
    by_model: dict[str, Segments]

    @property
    def first(self) -> Segments:
        return next(iter(self.by_model.values()))

    @property
    def accuracy(self) -> float:
        return float((self.scene.truth == self.first.mask).mean())


def announce(path: Path, status: str) -> None:
    """Write the page that is shown before the first picture; it reloads itself."""
    _write_progress(path, status, [], [])


def show_progress(path: Path, run: DemoRun, step: int) -> None:
    """Write the page of a demo that trains, with its latest snapshot; it reloads itself.

    Args:
      path: folder of the demo.
      run: the run trained on captions.
      step: that the snapshot was taken after.
    """
    from groupvit_jax.report import charts

    snapshots = pictures.read_snapshots(path / pictures.FOLDER)
    scenes = pictures.read_scenes(run.config.evaluators.test.source, pictures.SHOWN)
    shown = zip(scenes, snapshots[step], strict=True)
    status = f"Step {step} of {run.config.train.num_steps}."
    curves = {
        "Training losses": {name: _curve(run, name) for name in _LOSSES},
        "Validation mIoU in per cent": {run.name: _curve(run, "validation/miou", 100)},
    }
    _write_progress(
        path,
        status,
        _pictures(list(shown), lambda pair: pictures.panels(pair[0], pair[1], 3)),
        [
            charts.line_chart(title, lines)
            for title, lines in curves.items()
            if any(len(points) > 1 for points in lines.values())
        ],
    )


def _write_progress(path: Path, status: str, shown: Rows, drawn: list[Any]) -> None:
    from groupvit_jax.report import document

    page = document.render(
        "demo_progress",
        title="Segmentation emerging from captions",
        status=status,
        colours=_class_colours(),
        shown=shown,
        charts=drawn,
    )
    path.mkdir(parents=True, exist_ok=True)
    replace_text(path / _PAGE, page)  # whole at any time: a browser reloads it


def write(runs: Sequence[DemoRun], workdir: Path) -> str:
    """Write the report, the pictures and a few scenes into the demo's folder.

    Args:
      runs: finished runs, the one trained on captions first.
      workdir: folder of the demo.

    Returns:
      A table of the scores and the path of the report.
    """
    models = {run.name: load_pretrained(run.workdir) for run in runs}
    scores = {run.name: run.history[-1] for run in runs}
    captions = runs[0]
    parts = setup.build(captions.config, captions.workdir)
    variables = parts.fresh_state().variables
    models[UNTRAINED] = models[captions.name]._replace(variables=variables)
    scores[UNTRAINED] = _scores_of(parts, variables)
    scenes = pictures.read_scenes(captions.config.evaluators.test.source, CANDIDATES)
    segmented = _segment(scenes, captions.config.evaluators.test, models)
    snapshots = pictures.read_snapshots(workdir / pictures.FOLDER)
    _write_page(workdir / _PAGE, runs, scores, segmented, snapshots)
    best = sorted(segmented, key=lambda each: -each.accuracy)[:3]
    poster = pictures.poster([(each.scene, each.first) for each in best])
    replace_bytes(workdir / _PICTURE, visualize.png(poster))
    if snapshots:
        animated = pictures.animation(scenes[: pictures.SHOWN], snapshots)
        replace_bytes(workdir / _ANIMATION, animated)
    (workdir / _EXAMPLES).mkdir(exist_ok=True)
    for number, scene in enumerate(scenes[:EXAMPLES], 1):
        replace_bytes(workdir / _EXAMPLES / f"scene_{number}.png", visualize.png(scene.image))
    return _table(scores)


def _table(scores: dict[str, dict[str, float]]) -> str:
    table = Table("learnt from", *_SCORES.values(), box=None)
    for name, values in scores.items():
        table.add_row(name, *(f"{100 * values[key]:.1f}" for key in _SCORES))
    console = Console(width=110)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip()


def _scores_of(parts: setup.Parts, variables: Params) -> dict[str, float]:
    """Evaluate variables with the evaluators of a run."""
    evaluators = make_evaluators(parts.config, parts.model, parts.tokenizer, parts.mesh)
    return {
        f"{evaluator.name}/{metric}": value
        for evaluator, _ in evaluators
        for metric, value in evaluator(variables).items()
    }


def _segment(
    scenes: Sequence[Scene], test: ConfigDict, models: dict[str, Pretrained]
) -> list[_Segmented]:
    """Segment the first `COMPARED` scenes by each model, all of them by the first."""
    found: list[dict[str, Segments]] = [{} for _ in scenes]
    for number, (name, model) in enumerate(models.items()):
        segmenter = Segmenter(model, windows_at_once=64, **pictures.knobs_of(test))
        labels = segmenter.class_names or dataset.CLASS_NAMES
        few = [scene.image for scene in (scenes if number == 0 else scenes[:COMPARED])]
        for results, result in zip(found, segmenter.batch(few, labels), strict=False):
            results[name] = Segments(result.mask, result.groups)
    return [_Segmented(*pair) for pair in zip(scenes, found, strict=True)]


def _write_page(
    path: Path,
    runs: Sequence[DemoRun],
    scores: dict[str, dict[str, float]],
    segmented: Sequence[_Segmented],
    snapshots: dict[int, list[Segments]],
) -> None:
    # Imported when a page is written: Matplotlib would slow down the start of the command.
    from groupvit_jax.report import charts, document

    captions, classes = runs[0], dataset.CLASS_NAMES

    def percent(key: str) -> list[float]:
        return [100 * values.get(key, float("nan")) for values in scores.values()]

    steps = _spread(sorted(snapshots), FILM)
    shown = segmented[: pictures.SHOWN]
    page = document.render(
        "demo",
        title="Segmentation that emerged from captions",
        steps=captions.config.train.num_steps,
        mask_steps=runs[-1].config.train.num_steps,
        models=list(scores),
        has_controls=len(runs) > 1,
        scores_header=["learnt from", *_SCORES.values()],
        scores=list(zip(scores, *map(percent, _SCORES), strict=True)),
        colours=_class_colours(),
        shown=_pictures(shown, lambda s: pictures.panels(s.scene, s.first, 3)),
        compared=_pictures(segmented[:COMPARED], _comparison),
        film_header=["scene", *(f"step {step}" for step in steps)],
        film=_film(shown[:COMPARED], [snapshots[step] for step in steps]),
        charts=[
            charts.line_chart(
                "Training losses", {name: _curve(captions, name) for name in _LOSSES}
            ),
            charts.line_chart(
                "Validation mIoU in per cent",
                {run.name: _curve(run, "validation/miou", 100) for run in runs},
            ),
        ],
        class_iou=[(name, *percent(f"test/iou/{name}")) for name in classes],
    )
    replace_text(path, page)


def _pictures(scenes: Sequence[Any], panels: Callable[[Any], list[RgbImage]]) -> Rows:
    """Draw the panels of each scene, of `_Segmented` or a pair that begins with the scene."""
    from groupvit_jax.report import document

    return [([document.data_url(p) for p in panels(s)], s[0].caption) for s in scenes]


def _film(segmented: Sequence[_Segmented], snapshots: Sequence[Sequence[Segments]]) -> Rows:
    """Draw each scene and its segmentation in each snapshot."""
    classes = len(dataset.CLASS_NAMES)

    def strip(numbered: tuple[Scene, int]) -> list[RgbImage]:
        scene, number = numbered
        masks = (of_scenes[number].mask for of_scenes in snapshots)
        painted = (pictures.over(scene, mask, classes, 2) for mask in masks)
        return [visualize.enlarge(scene.image, 2), *painted]

    return _pictures([(each.scene, number) for number, each in enumerate(segmented)], strip)


def _spread(steps: list[int], count: int) -> list[int]:
    """Return the first and the last step, and others between whose ratios are about the same."""
    if len(steps) <= count:
        return steps
    wanted = np.geomspace(steps[1], steps[-1], count - 1)
    nearest = np.abs(np.subtract.outer(wanted, steps)).argmin(axis=1)
    return sorted({steps[0], *(steps[i] for i in nearest.tolist())})


def _class_colours() -> dict[str, str]:
    palette = visualize.palette(len(dataset.CLASS_NAMES)).tolist()
    pairs = zip(dataset.CLASS_NAMES, palette, strict=True)
    return {name: f"rgb{tuple(rgb)}" for name, rgb in pairs}


def _curve(run: DemoRun, name: str, factor: float = 1.0) -> list[tuple[float, float]]:
    found = ((line["step"], line.get(name)) for line in run.history)
    return [(float(step), factor * value) for step, value in found if value is not None]


def _comparison(segmented: _Segmented) -> list[RgbImage]:
    """Return scene, the segmentation of each model and truth."""
    masks = [*(segments.mask for segments in segmented.by_model.values()), segmented.scene.truth]
    scene, classes = segmented.scene, len(dataset.CLASS_NAMES)
    painted = [pictures.over(scene, mask, classes, 3) for mask in masks]
    return [visualize.enlarge(scene.image, 3), *painted]
