"""The demo's report: what the models score, and what they make of the first test scenes."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np
from ml_collections import ConfigDict

from groupvit_jax.data import scenes
from groupvit_jax.data.masks import TfdsMasks
from groupvit_jax.data.sources import TfdsSource
from groupvit_jax.eval import report, visualize
from groupvit_jax.eval.encoding import Encoder
from groupvit_jax.eval.inference import WindowEncoder
from groupvit_jax.eval.protocol import Protocol
from groupvit_jax.eval.segment_head import HeadTower, HeadWindowEncoder
from groupvit_jax.eval.segment_images import ImageSegmenter, SegmentedImage
from groupvit_jax.eval.segmentation_evaluator import Segmentation
from groupvit_jax.interop.load import load_pretrained
from groupvit_jax.train import setup, writers
from groupvit_jax.typing import Params

UNTRAINED = "untrained"
SHOWN = 16  # scenes in the report
COMPARED = 6  # scenes with the pictures of all models
CANDIDATES = 128  # scenes among which those of the README's picture are the best

_COLUMNS = [
    ("test", "miou"), ("test", "pixel_accuracy"), ("shifted", "miou"), ("shifted", "pixel_accuracy")
]  # fmt: skip
_NAMES = {"miou": "mIoU %", "pixel_accuracy": "pixels right %"}
_INTRODUCTION = (
    "A small GroupViT was trained for {steps} steps on drawn scenes and their captions. No mask, "
    "no list of classes reached the training. The masks below, and the names of the classes, are "
    "used only here. The shifted scenes have other sizes, hues and textures than those of training."
)
_CONTROLS = (
    "Beside it: the same model before training; with groups that share their patches (soft) "
    "instead of competing for them; with each scene captioned by another one's caption; and with "
    "{mask_steps} steps more of its own, in which a segment head learnt from the masks. The last "
    "is what masks would add, the one before what can be had without learning from captions."
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run of the demo: its name in the report, its folder and its configuration."""

    name: str
    workdir: Path
    config: ConfigDict

    @property
    def history(self) -> list[dict[str, Any]]:
        """The metrics of its steps."""
        return writers.read_metrics(self.workdir / writers.METRICS_FILE)


class Scene(NamedTuple):
    """A test scene and what the models make of it.

    Attributes:
      image: the pixels.
      caption: says what is in it.
      truth: class of every pixel.
      found: model -> its segmentation, that of the captions first.
    """

    image: np.ndarray
    caption: str
    truth: np.ndarray
    found: dict[str, SegmentedImage]


def write(runs: Sequence[Run], workdir: Path) -> str:
    """Writes report.html and scenes.png; returns a summary.

    Args:
      runs: that are complete, the one that learns from captions first.
      workdir: of the demo.
    """
    captions = runs[0]
    parts = setup.build(captions.config, captions.workdir)
    fresh = parts.fresh_state()
    untrained = {"params": fresh.params, "batch_stats": fresh.batch_stats}
    scores = {run.name: run.history[-1] for run in runs}
    scores[UNTRAINED] = _score(Encoder(parts.model, parts.tokenizer, parts.mesh), untrained, parts)
    pairs, texts = _test_scenes(captions.config)
    found = {run.name: _segment(run, pairs) for run in runs}
    found[UNTRAINED] = _segment(captions, pairs[:COMPARED], untrained)
    shown = [
        Scene(image, text, mask, {name: many[i] for name, many in found.items() if i < len(many)})
        for i, ((image, mask), text) in enumerate(zip(pairs, texts, strict=True))
    ]
    report.write(workdir / "report.html", _page(runs, scores, shown))
    best = sorted(shown, key=lambda scene: -_accuracy(scene, captions.name))[:3]
    (workdir / "scenes.png").write_bytes(visualize.png(poster(best)))
    lines = [f"{scores[name]['test/miou']:7.1%}  {name}" for name in scores]
    return "\n".join(["Test mIoU of models that learnt from", *lines, f"Report: {workdir / 'report.html'}"])
