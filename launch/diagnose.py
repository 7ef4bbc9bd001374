"""Shows how a run's groups developed, and what usually causes what looks wrong.

python -m launch.diagnose runs/first --images='photos/*.jpg' --output=diagnosis.html

Reads the run's metrics and the checkpoints that it has kept; a run may go on meanwhile. Writes one
self-contained page: signs of trouble with their usual causes, the groups of the images at each
checkpoint, and curves. docs/troubleshooting.md has the remedies.

Exit codes: 0 done; 2 wrong flags or files.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from groupvit_jax.data.images.photo import read_photo
from groupvit_jax.report import visualize
from groupvit_jax.runs import checkpoints
from groupvit_jax.runs.layout import CHECKPOINTS
from groupvit_jax.runs.reading import Run, find_runs, read_runs
from launch import common, segment

_SIDE = 224  # pixels of a picture
_MOST_STEPS, _MOST_IMAGES = 6, 12
_LABELS = ("object",)  # groups don't depend on labels


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; `argv[0]` is the program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="workdir of a run")
    parser.add_argument("--images", nargs="+", default=[], help="files, folders or quoted globs")
    parser.add_argument("--output", required=True, help="the page, NAME.html")
    return parser.parse_args(argv[1:])


def main(flags: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    common.name_steps()
    with common.bad_input_ends():
        return _run(flags)


def _run(flags: argparse.Namespace) -> int:
    output = Path(flags.output)
    if output.suffix != ".html" or output.is_dir():
        raise ValueError(f"--output={output}: expected the name of a page, such as diagnosis.html")
    found = find_runs([flags.run])
    if len(found) > 1:
        raise ValueError(f"{flags.run}: {len(found)} runs found, expected one")
    [run] = read_runs(found)
    if run.state == "unreadable":
        raise ValueError(run.remark)
    images = segment.find_images(flags.images, output.parent) if flags.images else []
    from groupvit_jax.compare import diagnosis  # imports Matplotlib, which errors don't need
    from groupvit_jax.report import document

    signs = diagnosis.findings(run)
    steps, pictures = _pictures(run.path, images[:_MOST_IMAGES])
    document.write(
        output,
        "diagnosis",
        title=f"Diagnosis of {run.name}",
        state=_state(run),
        findings=signs,
        steps=["image", *(f"step {step}" for step in steps)],
        pictures=pictures,
        no_pictures="No pictures: the run has no whole checkpoint."
        if images
        else "No pictures: --images names some to show their groups.",
        charts=diagnosis.curves(run),
    )
    for sign in signs:
        print(f"{sign.title}: {sign.evidence}")
    print(f"signs of trouble: {len(signs)}; the page is {output}")
    return 0


def _state(run: Run) -> str:
    remark = f" ({run.remark})" if run.remark else ""
    return f"{run.path}: {run.state}{remark}, metrics up to step {run.last_step}."


def _pictures(
    workdir: Path, images: Sequence[Path]
) -> tuple[list[str], list[tuple[list[str], str]]]:
    """Return the names of the steps shown, and for each image its pictures and a line of text."""
    from groupvit_jax.report import document
    from groupvit_jax.segmenter import Segmenter  # with JAX

    if not images:
        return [], []
    photos = [_small(read_photo(path, str(path))) for path in images]
    rows = [[document.data_url(photo, "jpeg")] for photo in photos]
    counts: list[list[str]] = [[] for _ in photos]
    steps = _kept_steps(workdir)
    for step in steps:
        segmenter = Segmenter.from_pretrained(step)
        labels = None if segmenter.class_names else _LABELS
        for row, count, result in zip(rows, counts, segmenter.batch(photos, labels), strict=True):
            groups = result.groups[-1]
            colours = visualize.palette(int(groups.max()) + 1)
            painted = visualize.overlay(result.image, groups, colours)
            row.append(document.data_url(painted, "jpeg"))
            count.append(str(len(np.unique(groups))))
    texts = [f"{p.name}: {', '.join(c)} groups" for p, c in zip(images, counts, strict=True)]
    shown = list(zip(rows, texts, strict=True)) if steps else []
    return [step.name for step in steps], shown


def _kept_steps(workdir: Path) -> list[Path]:
    """Return the whole steps of a run, in order; of many the first, the last and some between."""
    folder = workdir / CHECKPOINTS
    # Decimal names only: Orbax writes a step under a longer name until it is whole.
    steps = sorted(
        (p for p in folder.glob("[0-9]*") if p.name.isdecimal()), key=lambda p: int(p.name)
    )
    whole = [p for p in steps if checkpoints.find_damage(p, checkpoints.INFERENCE_ITEMS) is None]
    if len(whole) <= _MOST_STEPS:
        return whole
    return [whole[i] for i in np.linspace(0, len(whole) - 1, _MOST_STEPS).round().astype(int)]


def _small(photo: visualize.RgbImage) -> visualize.RgbImage:
    """Return the photo with its longer side at most `_SIDE` pixels."""
    import cv2

    factor = min(1.0, _SIDE / max(photo.shape[:2]))
    size = (max(1, round(photo.shape[1] * factor)), max(1, round(photo.shape[0] * factor)))
    return cv2.resize(photo, size, interpolation=cv2.INTER_AREA)


if __name__ == "__main__":
    sys.exit(main(parse_flags(sys.argv)))
