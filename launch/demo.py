"""Generate captioned scenes, train from the captions alone, and write a report with pictures.

python -m launch.demo --workdir=runs/demo

It also trains controls: the same model with soft groups, with captions of other scenes, and
finetuned on masks. A second call resumes where the first stopped. The report is
WORKDIR/report.html.
"""

from pathlib import Path

import jax
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
from groupvit_jax.train.loop import train
from launch import common, demo_report
from launch.demo_report import DemoRun

WORKDIR = common.define_workdir_flag()
STEPS = flags.DEFINE_integer("steps", None, "Training steps of each run.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Seed of parameters and data order.")
DATA = flags.DEFINE_string(
    "data", "small", f"Size of the data set: {[c.name for c in dataset.Scenes.BUILDER_CONFIGS]}."
)
CONTROLS = flags.DEFINE_boolean("controls", True, "Also train the control models.")
# Enough for the head, which starts from the model trained on captions.
_STEPS_WITH_MASKS = 300


def main(argv: list[str]) -> int:
    """Run all steps that are not yet done; return the exit code."""
    del argv
    if not WORKDIR.value:
        common.fail(
            exit_codes.BAD_INPUT, "--workdir: missing, expected a folder for data and report"
        )
    workdir = Path(WORKDIR.value).absolute()
    common.keep_freed_memory()
    jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
    with common.progress_display() as show:
        try:
            check_writable(workdir)
            builder = dataset.build(str(workdir / "data"), DATA.value)
            runs = make_runs(builder, workdir, STEPS.value, SEED.value)
            for done in range(1, 1 + (len(runs) if CONTROLS.value else 1)):
                run = runs[done - 1]
                result = train(
                    run.config,
                    run.workdir,
                    make_evaluators=_evaluators,
                    initialisers=INITIALISERS,
                    show=show,
                )
                if not result.complete:
                    return exit_codes.STOPPED
                if done in (1, len(runs)):
                    summary = demo_report.write(runs[:done], workdir)
        except (ValueError, FileNotFoundError) as error:
            if not common.is_user_error(error):
                raise
            common.fail(exit_codes.BAD_INPUT, error)
    print(summary)
    return 0


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
            warmup = config.optimizer.warmup_steps
            config.optimizer.warmup_steps = min(warmup, most_steps // 10)
        return config

    captions, soft, exchanged = (adapted(scenes_config.get_config()) for _ in range(3))
    soft.model.image.assignment = "soft"
    exchanged.data.sources.scenes.exchange_captions = True
    masks = adapted(
        finetune_scenes.get_config(), min(steps or _STEPS_WITH_MASKS, _STEPS_WITH_MASKS)
    )
    masks.init_from = str(workdir / "run")
    return [
        DemoRun("captions", workdir / "run", captions),
        DemoRun("captions, with soft groups", workdir / "soft", soft),
        DemoRun("captions of other scenes", workdir / "exchanged", exchanged),
        DemoRun("captions, then masks", workdir / "masks", masks),
    ]


def _evaluators(parts: setup.Parts) -> list[tuple[Evaluator, int]]:
    return make_evaluators(parts.config, parts.model, parts.tokenizer, parts.mesh)


if __name__ == "__main__":
    app.run(main, flags_parser=common.parse_flags)
