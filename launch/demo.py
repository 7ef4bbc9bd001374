"""Draws captioned scenes, learns to segment from the captions alone, and reports with pictures.

python -m launch.demo --workdir=runs/demo

Run again, it goes on where it stopped. The report is WORKDIR/report.html.
"""

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from configs import scenes as scenes_config
from groupvit_jax.data import scenes
from groupvit_jax.data.masks import TfdsMasks
from groupvit_jax.data.sources import TfdsSource
from groupvit_jax.eval import report, visualize
from groupvit_jax.eval.encoding import Encoder
from groupvit_jax.eval.evaluators import Evaluator, make_evaluators
from groupvit_jax.eval.inference import WindowEncoder
from groupvit_jax.eval.protocol import Protocol
from groupvit_jax.eval.segment_images import ImageSegmenter
from groupvit_jax.eval.segmentation_evaluator import Segmentation
from groupvit_jax.interop.load import load_pretrained
from groupvit_jax.train import run_folder, setup, writers
from groupvit_jax.train.loop import train
from groupvit_jax.typing import Params
from launch import common

STEPS = flags.DEFINE_integer("steps", None, "Training steps.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of parameters and the order of the examples.")
DATA = flags.DEFINE_string(
    "data", "small", f"Size of the data set: {[c.name for c in scenes.Scenes.BUILDER_CONFIGS]}."
)
SHOWN = 16  # scenes in the report
CANDIDATES = 128  # scenes among which those of the README's picture are the best


@dataclasses.dataclass(frozen=True)
class Example:
    """A test scene and what the model makes of it."""

    image: np.ndarray
    caption: str
    truth: np.ndarray
    prediction: np.ndarray
    groups: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of the pixels that are labelled rightly."""
        return float((self.truth == self.prediction).mean())


def main(argv: list[str]) -> None:
    """Runs all steps; what is done already is not done again."""
    del argv
    if not common.WORKDIR.value:
        common.fail(common.BAD_INPUT, "--workdir: missing, expected a folder for data and report")
    workdir = Path(common.WORKDIR.value).absolute()
    with common.progress_display() as show:
        try:
            run_folder.check_writable(workdir)
            builder = scenes.build(str(workdir / "data"), DATA.value)
            config = make_config(builder, STEPS.value, SEED.value)
            train(config, workdir / "run", make_evaluators=_evaluators, show=show)
        except (ValueError, FileNotFoundError) as error:
            if not common.is_own(error):
                raise
            common.fail(common.BAD_INPUT, error)
    print(write_report(config, workdir))


def make_config(builder: scenes.Scenes, steps: int | None, seed: int) -> ConfigDict:
    """Returns `configs/scenes.py` for the data of `builder`."""
    config = scenes_config.get_config()
    config.seed = seed
    folder, size = str(builder.data_dir), builder.builder_config.size
    config.data.sources.scenes.data_dir = folder
    config.evaluators.validation.source.data_dir = folder
    config.model.image.image_size = size
    config.evaluators.validation.update(window=size, stride=size)
    if steps is not None:
        config.train.num_steps = steps
        config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, steps // 10)
    return config


def _evaluators(parts: setup.Parts) -> list[tuple[Evaluator, int]]:
    return make_evaluators(parts.config, parts.model, parts.tokenizer, parts.mesh)


def write_report(config: ConfigDict, workdir: Path) -> str:
    """Evaluates the trained and an untrained model, writes the report, returns a summary."""
    parts = setup.build(config, workdir / "run")
    fresh = parts.fresh_state()
    models = {
        "trained on captions": jax.device_put(load_pretrained(workdir / "run").variables),
        "untrained": {"params": fresh.params, "batch_stats": fresh.batch_stats},
    }
    encoder = Encoder(parts.model, parts.tokenizer, parts.mesh)
    scores = {
        (name, split): _score(encoder, config, variables, split)
        for name, variables in models.items()
        for split in ("test", "shifted")
    }
    examples = segment_examples(encoder, models["trained on captions"], config)
    history = writers.read_metrics(workdir / "run" / writers.METRICS_FILE)
    report.write(workdir / "report.html", _page(config, scores, history, examples))
    best = sorted(examples, key=lambda example: -example.accuracy)[:3]
    (workdir / "scenes.png").write_bytes(visualize.png(poster(best)))
    trained, untrained = (scores[name, "test"]["miou"] for name in models)
    return (
        f"Test mIoU {trained:.1%} from captions alone, {untrained:.1%} untrained.\n"
        f"Report: {workdir / 'report.html'}"
    )


def _protocol(config: ConfigDict) -> Protocol:
    entry = config.evaluators.validation
    return Protocol(resize=(), window=entry.window, stride=entry.stride)


def _score(encoder: Encoder, config: ConfigDict, variables: Params, split: str) -> dict[str, float]:
    source = TfdsMasks("", split, config.evaluators.validation.source.data_dir)
    evaluator = Segmentation(
        encoder, source, scenes.CLASS_NAMES, _protocol(config), windows_at_once=64
    )
    return evaluator(variables)


def segment_examples(encoder: Encoder, variables: Params, config: ConfigDict) -> list[Example]:
    """Segments the first test scenes."""
    folder = config.evaluators.validation.source.data_dir
    masked, captions = TfdsMasks("", "test", folder), TfdsSource("", "test", folder)
    pairs = [masked[i] for i in range(min(CANDIDATES, len(masked)))]
    protocol = _protocol(config)
    text = encoder.class_embeddings(variables, scenes.CLASS_NAMES, protocol.prompts)
    segment = ImageSegmenter(WindowEncoder(encoder, protocol, views=True, windows_at_once=64))
    segmented = segment(variables, text, [image for image, _ in pairs])
    return [
        Example(image, captions[i]["captions"][0], mask, found.mask, found.groups[-1])
        for i, ((image, mask), found) in enumerate(zip(pairs, segmented, strict=True))
    ]


def _panels(example: Example, factor: int) -> list[np.ndarray]:
    """Image, groups, segmentation and truth, enlarged."""
    colours = visualize.palette(len(scenes.CLASS_NAMES))
    large = visualize.enlarge(example.image, factor)

    def over(labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
        return visualize.overlay(large, visualize.enlarge(labels, factor), palette)

    group_colours = visualize.palette(int(example.groups.max()) + 1)
    return [
        large,
        over(example.groups, group_colours),
        over(example.prediction, colours),
        over(example.truth, colours),
    ]


def poster(examples: list[Example], factor: int = 4) -> np.ndarray:
    """A picture for the README: a row a scene, its caption below."""
    rows = []
    for example in examples:
        image, groups, prediction, _ = _panels(example, factor)
        labels = visualize.enlarge(example.prediction, factor)
        named = visualize.write_names(prediction, labels, scenes.CLASS_NAMES)
        row = visualize.grid([[image, groups, named]])
        strip = np.full((32, row.shape[1], 3), 255, np.uint8)
        place, font = (2, 20), cv2.FONT_HERSHEY_SIMPLEX
        scale = min(0.55, 0.55 * (row.shape[1] - 4) / (len(example.caption) * 9.5))
        cv2.putText(strip, example.caption, place, font, scale, (40, 40, 40), 1, cv2.LINE_AA)
        rows += [row, strip]
    return np.concatenate(rows)


def _page(
    config: ConfigDict,
    scores: dict[tuple[str, str], dict[str, float]],
    history: list[dict[str, Any]],
    examples: list[Example],
) -> str:
    trained = scores["trained on captions", "test"]
    names = list(dict.fromkeys(name for name, _ in scores))
    percent = [
        (name, *(100 * scores[name, split][key] for split, key in _COLUMNS)) for name in names
    ]
    per_class = [
        (name, *(100 * scores[model, "test"].get(f"iou/{name}", float("nan")) for model in names))
        for name in scenes.CLASS_NAMES
    ]
    rows = [(_panels(example, 3), example.caption) for example in examples[:SHOWN]]
    return report.page(
        "Segmentation that emerged from captions",
        [
            report.paragraph(_INTRODUCTION.format(steps=config.train.num_steps)),
            report.table(
                ["model", *(f"{split}: {_NAMES[key]}" for split, key in _COLUMNS)], percent
            ),
            report.heading(f"The first {len(rows)} test scenes, none left out"),
            report.legend(scenes.CLASS_NAMES, visualize.palette(len(scenes.CLASS_NAMES))),
            report.scenes(["scene", "groups", "segmentation", "truth"], rows),
            report.heading("While it learnt"),
            report.line_chart(
                "Training losses",
                {name: _curve(history, name) for name in ("global/loss", "multi_label/loss")},
            ),
            report.line_chart(
                "Validation mIoU in per cent",
                {"mIoU": [(x, 100 * y) for x, y in _curve(history, "validation/miou")]},
            ),
            report.heading("Intersection over union of every class, in per cent, test scenes"),
            report.table(["class", *names], per_class),
            report.paragraph(
                f"Mean over the classes: {100 * trained['miou']:.1f} %. Each pixel takes the class "
                "of its group; nothing in training ever saw a mask."
            ),
        ],
    )


_COLUMNS = [
    ("test", "miou"), ("test", "pixel_accuracy"), ("shifted", "miou"), ("shifted", "pixel_accuracy")
]  # fmt: skip
_NAMES = {"miou": "mIoU %", "pixel_accuracy": "pixels right %"}
_INTRODUCTION = (
    "A small GroupViT was trained for {steps} steps on drawn scenes and their captions. No mask, "
    "no list of classes reached the training. The masks below, and the names of the classes, are "
    "used only here. The shifted scenes have other sizes, hues and textures than those of training."
)


def _curve(history: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    found = ((line["step"], line.get(name)) for line in history)
    return [(float(step), float(value)) for step, value in found if value is not None]


if __name__ == "__main__":
    app.run(main)
