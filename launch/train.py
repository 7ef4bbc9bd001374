r"""Train, or resume where the run of the workdir stopped.

python -m launch.train --config=configs/groupvit_gcc_yfcc_30e.py --workdir=runs/first \
        --config.data.sources.gcc3m.pattern='/data/cc3m/{00000..00331}.tar'

python -m launch.train --config=runs/first/config.json --workdir=runs/again

The second command repeats a run with its recorded configuration. --restore_step=N goes back to the
checkpoint of step N; docs/troubleshooting.md says when.

Exit codes: 0 all steps are done; 1 training failed (the last line says why; the checkpoints are
good); 2 something is wrong with flags, configuration, workdir (in use by another run, for example)
or data; 75 another process of the run has died; 143 the run was stopped by SIGTERM and its state is
saved. After 75 and 143 the same command resumes.
"""

import errno
import sys

from absl import app, flags

from groupvit_jax.data.pipeline.contrastive import TooManyBrokenSamplesError
from groupvit_jax.data.storage.retries import StorageError
from groupvit_jax.eval.evaluators import make_evaluators
from groupvit_jax.interop import INITIALISERS
from groupvit_jax.runs import exit_codes
from groupvit_jax.runs.evaluator import Evaluator
from groupvit_jax.runs.lock import LockLostError
from groupvit_jax.runs.workdir import WorkdirError
from groupvit_jax.train.hooks import NonFiniteError
from groupvit_jax.train.loop import train
from groupvit_jax.train.setup import Parts
from launch import common, overrides

CONFIG = common.define_config_flag()
WORKDIR = common.define_workdir_flag()
RESTORE_STEP = flags.DEFINE_integer(
    "restore_step",
    None,
    "Go back to this checkpoint, once; later ones move to checkpoints/rolled_back_to_N.",
    lower_bound=0,
)
common.define_process_flags()

FAILURES = NonFiniteError, TooManyBrokenSamplesError, StorageError, LockLostError, WorkdirError
# Of whatever else writes to the workdir: a disk that is full, over quota, read-only or gone.
DISK_ERRORS = errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN


def main(argv: list[str]) -> int:
    """Run the command and return its exit code."""
    del argv
    if not WORKDIR.value:
        common.fail(exit_codes.BAD_INPUT, "--workdir: missing, expected a folder for the run")
    changes = overrides.overrides_in(sys.argv)  # validated by `common.parse_flags`
    config, _ = overrides.read(["", f"--config={CONFIG.value}", *changes])
    common.use_huge_pages()
    common.start_jax()
    try:
        with common.progress_display() as show:
            result = train(
                config,
                WORKDIR.value,
                make_evaluators=evaluators_of,
                initialisers=INITIALISERS,
                show=show,
                restore_step=RESTORE_STEP.value,
            )
    except FAILURES as error:
        common.fail(exit_codes.FAILED, error)
    except (ValueError, FileNotFoundError) as error:
        if not common.is_user_error(error):
            raise
        common.fail(exit_codes.BAD_INPUT, error)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        common.fail(exit_codes.FAILED, WorkdirError(WORKDIR.value, "a file", error))
    return 0 if result.complete else exit_codes.STOPPED


def evaluators_of(parts: Parts) -> list[tuple[Evaluator, int]]:
    """Return the evaluators of the run's configuration."""
    return make_evaluators(parts.config, parts.model, parts.tokenizer, parts.mesh)


if __name__ == "__main__":
    app.run(main, flags_parser=common.parse_flags)
