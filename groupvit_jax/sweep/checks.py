"""Finds what is wrong with a trial before any trial starts."""

import tempfile
import traceback
from pathlib import Path

from ml_collections import ConfigDict

from groupvit_jax.eval.evaluators import make_evaluators
from groupvit_jax.runs.checkpoints import has_checkpoints
from groupvit_jax.train import setup


def find_error(config: ConfigDict, workdir: Path) -> str | None:
    """Return what training with this configuration would end with before its first step.

    Builds what training builds, with shapes in place of arrays: settings, batch and devices, data,
    vocabulary, model, optimizer, evaluators. Nothing is computed, nor written into the workdir.

    Args:
      config: the whole configuration.
      workdir: the trial's, for what its checkpoints hold; it need not be there.
    """
    with tempfile.TemporaryDirectory() as elsewhere:
        try:
            parts = setup.build(config, workdir if has_checkpoints(workdir) else Path(elsewhere))
            make_evaluators(config, parts.model, parts.tokenizer, parts.mesh)
        except (ValueError, FileNotFoundError) as error:
            return _line(error)
        # Whatever a wrong setting makes a library raise, it is this trial's error.
        except Exception as error:
            return f"{type(error).__name__}: {_line(error)} ({_place(error)})"
    return None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _place(error: Exception) -> str:
    """Return the last place in this package that the error passed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "groupvit_jax" in frame.filename]
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}"
