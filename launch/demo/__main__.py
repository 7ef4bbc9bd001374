"""Generate captioned scenes, train from the captions alone, and write a report with pictures.

python -m launch.demo --workdir=runs/demo
python -m launch.demo --workdir=runs/demo --controls

WORKDIR/report.html shows the test scenes while the model learns to segment them, and the results at
the end. With --controls, models to compare with are trained too, and the report completed: the same
model with soft groups, with captions of other scenes, and finetuned on masks. A second call resumes
where the first stopped. The model is WORKDIR/run, for --checkpoint of other commands.
"""

import contextlib
import functools
import io
import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import tensorflow_datasets as tfds
from absl import app, flags
from ml_collections import ConfigDict

from configs import finetune_scenes
from configs import scenes as scenes_config
from groupvit_jax.eval.evaluators import make_evaluators
from groupvit_jax.interop import INITIALISERS
from groupvit_jax.runs import exit_codes
from groupvit_jax.runs.evaluator import Evaluator
from groupvit_jax.runs.workdir import check_writable
from groupvit_jax.scenes import dataset
from groupvit_jax.train import setup
from groupvit_jax.train.loop import ProgressDisplay, train
from launch import common
from launch.demo import pictures, report
from launch.demo.report import DemoRun

WORKDIR = common.define_workdir_flag()
STEPS = flags.DEFINE_integer("steps", None, "Training steps of each run.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Seed of parameters and data order.")
DATA = flags.DEFINE_enum(
    "data", "small", [c.name for c in dataset.Scenes.BUILDER_CONFIGS], "Size of the data set."
)
CONTROLS = flags.DEFINE_boolean("controls", False, "Also train the models to compare with.")
_FIRST = "run"  # folder of the run trained on captions
# Enough for the head, which starts from the model trained on captions.
_STEPS_WITH_MASKS = 300
# Minutes on two CPU cores, as announced.
_MINUTES, _MINUTES_OF_CONTROLS = 7, 13


def main(argv: list[str]) -> int:
    """Run all steps that are not yet done; return the exit code."""
    del argv
    if not WORKDIR.value:
        common.fail(
            exit_codes.BAD_INPUT, "--workdir: missing, expected a folder for data and report"
        )
    workdir = Path(WORKDIR.value).absolute()
    common.use_huge_pages()
    # A second call finds the programs of the first.
    jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
    with common.bad_input_ends():
        check_writable(workdir)
        builder = dataset.make_builder(str(workdir / "data"), DATA.value)
        runs = make_runs(builder, workdir, STEPS.value, SEED.value)
        wanted = runs if CONTROLS.value else runs[:1]
        print(_announcement(workdir, wanted), flush=True)
        with common.progress_display() as show:
            if not runs[0].is_complete:
                report.announce(workdir, "Scenes are being drawn, then the model is compiled.")
            with _timed("data"):
                _draw_scenes(builder)
            for run in wanted:
                with _timed(f"training from {run.name}"):
                    if not _train(run, workdir, show):
                        return exit_codes.STOPPED
            with _timed("report"):
                logging.getLogger("groupvit_jax").setLevel(logging.WARNING)
                table = report.write([run for run in runs if run.is_complete], workdir)
    print(f"\n{table}\n\nOpen {_short(workdir / 'report.html')}\n\n{_next_commands(workdir, runs)}")
    return 0


def _draw_scenes(builder: dataset.Scenes) -> None:
    # TFDS's bars redraw themselves with carriage returns, hundreds of lines where there is no
    # terminal, and its messages speak of downloads.
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()


def _train(run: DemoRun, workdir: Path, show: ProgressDisplay) -> bool:
    """Train a run, or the rest of it; tell whether it is complete."""

    def snapshots(parts: setup.Parts) -> list[pictures.Snapshots]:
        show_progress = functools.partial(report.show_progress, workdir, run)
        return [pictures.Snapshots(parts, workdir / pictures.FOLDER, show_progress)]

    result = train(
        run.config,
        run.workdir,
        make_evaluators=_evaluators,
        initialisers=INITIALISERS,
        show=show,
        make_hooks=snapshots if run.workdir.name == _FIRST else lambda parts: (),
    )
    return result.complete


def _announcement(workdir: Path, wanted: Sequence[DemoRun]) -> str:
    """Return what is going to happen, and how long it takes."""
    minutes = 0 if wanted[0].is_complete else _MINUTES
    minutes += _MINUTES_OF_CONTROLS if len(wanted) > 1 else 0
    steps = [
        "draw scenes with captions",
        f"train {wanted[0].config.train.num_steps} steps on the captions alone",
        *(["train three models to compare with"] if len(wanted) > 1 else []),
        "evaluate on test scenes and write the report",
    ]
    lines = [f"  {number}. {text}" for number, text in enumerate(steps, 1)]
    return "\n".join(
        (
            f"The demonstration takes about {minutes or 1} min on two CPU cores, to",
            *lines,
            f"Open {_short(workdir / 'report.html')} now: it shows scenes as the model learns.",
        )
    )


def _next_commands(workdir: Path, runs: Sequence[DemoRun]) -> str:
    """Return three commands to go on with."""
    python, folder = shlex.quote(_short(Path(sys.executable))), shlex.quote(_short(workdir))
    labels, test = ", ".join(dataset.CLASS_NAMES), runs[0].config.evaluators.test
    knobs = f"--window={test.window} --pamr_iterations={test.pamr_iterations}"
    controls = f"{python} -m launch.demo --workdir={folder} --controls"
    if all(run.is_complete for run in runs):
        folders = " ".join(f"{folder}/{run.workdir.name}" for run in runs)
        controls = f"{python} -m launch.compare {folders} --output={folder}/comparison"
    return "\n".join(
        (
            "Next:",
            f"  {python} -m launch.serve --checkpoint={folder}/{_FIRST} {knobs}",
            f"  {controls}",
            f"  {python} -m launch.segment --checkpoint={folder}/{_FIRST} {knobs} "
            f'--labels="{labels}" --output={folder}/segmented {folder}/examples',
        )
    )


def _short(path: Path) -> str:
    """Return a path relative to the current folder if it is below it."""
    # Not resolved: the interpreter of a virtual environment is a link to another one.
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


@contextlib.contextmanager
def _timed(name: str) -> Iterator[None]:
    """Print how long the block took, unless it had nothing to do."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    seconds = time.perf_counter() - wall
    if seconds >= 0.5:
        used = time.process_time() - cpu
        print(f"{name}: {seconds:.0f} s ({used:.0f} s of CPU time)", flush=True)


def make_runs(
    builder: dataset.Scenes, workdir: Path, steps: int | None, seed: int
) -> list[DemoRun]:
    """Return the run trained on captions, then the controls."""

    def adapted(config: ConfigDict, most_steps: int | None = steps) -> ConfigDict:
        config.seed = seed
        folder, size = str(builder.data_dir), builder.builder_config.size
        config.model.image.image_size = size
        config.data.sources.scenes.data_dir = folder
        for evaluator in config.evaluators.values():
            evaluator.source.data_dir = folder
            evaluator.update(window=size, stride=size)
        if most_steps is not None:
            config.train.num_steps = most_steps
            # A short run reaches its full rate, too.
            warmup = config.optimizer.warmup_steps
            config.optimizer.warmup_steps = min(warmup, most_steps // 10)
        return config

    captions, soft, exchanged = (adapted(scenes_config.get_config()) for _ in range(3))
    soft.model.image.assignment = "soft"
    exchanged.data.sources.scenes.exchange_captions = True
    masks = adapted(
        finetune_scenes.get_config(), min(steps or _STEPS_WITH_MASKS, _STEPS_WITH_MASKS)
    )
    masks.init_from = str(workdir / _FIRST)
    return [
        DemoRun("captions", workdir / _FIRST, captions),
        DemoRun("captions, with soft groups", workdir / "soft", soft),
        DemoRun("captions of other scenes", workdir / "exchanged", exchanged),
        DemoRun("captions, then masks", workdir / "masks", masks),
    ]


def _evaluators(parts: setup.Parts) -> list[tuple[Evaluator, int]]:
    return make_evaluators(parts.config, parts.model, parts.tokenizer, parts.mesh)


if __name__ == "__main__":
    app.run(main, flags_parser=common.parse_flags)
