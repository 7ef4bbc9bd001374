"""The checkpoints of a run: where a step is, what it holds, and reading it without a trainer.

    CHECKPOINTS/STEP/model          parameters and batch statistics: all that inference needs
                     training       optimizer state, step, random key
                     data_position  how far the data were read (JSON)
                     config         the run's configuration (JSON)
                     tokenizer      the vocabulary with its fingerprint (JSON)
                     metrics        the metrics of the step (JSON, written by Orbax itself)

Model and training are items of their own, so that inference never reads the optimizer state, twice
the size of the parameters. Orbax writes a step under a temporary name and renames it when it is
complete: a folder whose name is a number is a whole checkpoint.
"""

from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from groupvit_jax.data.text import vocabulary
from groupvit_jax.data.text.vocabulary import Vocabulary
from groupvit_jax.runs.configuration import config_from_dict
from groupvit_jax.runs.files import read_json
from groupvit_jax.runs.layout import CHECKPOINTS
from groupvit_jax.typing import PyTree

MODEL, TRAINING = "model", "training"
DATA_POSITION, CONFIG, TOKENIZER = "data_position", "config", "tokenizer"
ARRAY_ITEMS = (MODEL, TRAINING)
JSON_ITEMS = (DATA_POSITION, CONFIG, TOKENIZER)
_JSON_FILE = "metadata"  # the name that Orbax's JSON handler gives the file of an item


def find_step(path: Path) -> Path | None:
    """Return the step that a path names, None if it names none.

    Args:
      path: a step, or a run's folder or its checkpoints, which stand for their last step.
    """
    path = path.absolute()  # Orbax refuses relative paths
    if _is_step(path):
        return path
    return last_step(path) or last_step(path / CHECKPOINTS)


def last_step(directory: Path) -> Path | None:
    """Return the last of the steps in a directory, None without any."""
    steps = [path for path in directory.glob("[0-9]*") if _is_step(path)]
    return max(steps, key=lambda path: int(path.name), default=None)


def has_checkpoints(workdir: Path) -> bool:
    """Return whether a run has begun to write checkpoints."""
    return (workdir / CHECKPOINTS).is_dir()


def read_config(step: Path) -> ConfigDict:
    """Return the configuration of the run that wrote a step.

    Raises:
      FileNotFoundError: the step has none.
      ValueError: it is damaged.
    """
    return config_from_dict(read_json(_json_file(step, CONFIG)))


def stored_vocabulary(step: Path) -> Vocabulary | None:
    """Return the vocabulary in a step; None where there is none, as in the oldest checkpoints.

    Raises:
      ValueError: it is damaged.
    """
    path = _json_file(step, TOKENIZER)
    return vocabulary.from_json(read_json(path), path) if path.is_file() else None


def last_vocabulary(workdir: Path) -> Vocabulary | None:
    """Return the vocabulary in a run's last checkpoint; None without either.

    Raises:
      ValueError: it is damaged.
    """
    step = last_step(workdir / CHECKPOINTS)
    return stored_vocabulary(step) if step else None


def read_model(step: Path) -> PyTree:
    """Return a step's {"params", "batch_stats"} as NumPy arrays, on one host.

    Restored as NumPy, because the shardings in the checkpoint name the devices that wrote it, which
    this host need not have.
    """
    with ocp.PyTreeCheckpointer() as checkpointer:
        described = checkpointer.metadata(step / MODEL).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), described)
        return checkpointer.restore(step / MODEL, restore_args=as_numpy)


def _json_file(step: Path, item: str) -> Path:
    return step / item / _JSON_FILE


def _is_step(path: Path) -> bool:
    return path.name.isdecimal() and (path / MODEL).is_dir()
