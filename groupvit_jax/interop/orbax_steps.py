"""Training checkpoints, read for inference: parameters and statistics without the optimizer."""

from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from groupvit_jax.data.text.vocabulary import Vocabulary, from_json, read_vocabulary
from groupvit_jax.interop.layout import check_variables, flatten, unflatten
from groupvit_jax.interop.model_config import config_from_dict
from groupvit_jax.interop.pretrained import Pretrained
from groupvit_jax.interop.tensor_file import read_json


def find_step(path: Path) -> Path | None:
    """The step that a path names: a step itself, or the last one of a run or its checkpoints."""
    path = path.absolute()  # Orbax refuses relative paths
    if _is_step(path):
        return path
    for directory in (path, path / "checkpoints"):
        steps = [step for step in directory.glob("[0-9]*") if _is_step(step)]
        if steps:
            return max(steps, key=lambda step: int(step.name))
    return None


def read_orbax(step: Path) -> Pretrained:
    """Reads a step's model, on one host, however many devices wrote it.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: naming the array that doesn't fit the configuration.
    """
    run = config_from_dict(read_json(step / "config" / "metadata"))
    if "model" not in run:
        raise ValueError(f"{step / 'config'}: no field 'model', expected a run's configuration")
    has_head = run.get("task") == "segmentation"
    class_names = tuple(run.segmentation.get("class_names", ())) if has_head else ()
    if has_head and not class_names:
        raise ValueError(
            f"{step / 'config'}: no name in 'segmentation.class_names', expected the segment head's"
        )
    with ocp.PyTreeCheckpointer() as checkpointer:
        described = checkpointer.metadata(step / "model").item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), described)
        flat = flatten(checkpointer.restore(step / "model", restore_args=as_numpy))
    check_variables(flat, run.model, step / "model", len(class_names))
    tokenizer = _read_tokenizer(step, run)
    return Pretrained(run.model, unflatten(flat), tokenizer, class_names=class_names)


def _read_tokenizer(step: Path, run: ConfigDict) -> Vocabulary:
    """The checkpoint's own vocabulary; older ones have none, but name the file of the training."""
    stored = step / "tokenizer" / "metadata"
    if stored.is_file():
        return from_json(read_json(stored), stored)
    return read_vocabulary(run.data.tokenizer.name, run.data.tokenizer.path)


def _is_step(path: Path) -> bool:
    return path.name.isdigit() and (path / "model").is_dir()
