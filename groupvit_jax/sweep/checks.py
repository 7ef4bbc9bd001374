"""Finding errors in a trial before any trial starts."""

import tempfile
import traceback
from pathlib import Path

from ml_collections import ConfigDict

from groupvit_jax.eval.evaluators import make_evaluators
from groupvit_jax.runs.checkpoints import has_checkpoints
from groupvit_jax.train import setup


def find_error(config: ConfigDict, workdir: Path) -> str | None:
    """Return the error that training would raise before its first step, None without one.

    Builds the parts of a training run with shapes in place of arrays: settings, batch and devices,
    data, vocabulary, model, optimizer, evaluators. Nothing is computed or written into the workdir.

    Args:
      config: the whole configuration.
      workdir: the trial's folder, whose checkpoints fix the vocabulary; it need not exist.
    """
    with tempfile.TemporaryDirectory() as elsewhere:
        try:
            parts = setup.build(config, workdir if has_checkpoints(workdir) else Path(elsewhere))
            make_evaluators(config, parts.model, parts.tokenizer, parts.mesh)
        except (ValueError, FileNotFoundError) as error:
            return _line(error)
        # A wrong setting may surface as any error of any library. It is this trial's error, and
        # must not end the check of the others.
        except Exception as error:
            return f"{type(error).__name__}: {_line(error)} ({_place(error)})"
    return None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _place(error: Exception) -> str:
    """Return the innermost frame of this package in the error's traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "groupvit_jax" in frame.filename]
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}"
