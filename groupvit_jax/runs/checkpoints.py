"""The checkpoints of a run: where a step is, what it holds, and reading it without a trainer.

    CHECKPOINTS/STEP/model          parameters and batch statistics: all that inference needs
                     training       optimizer state, step, random key
                     data_position  how far the data were read (JSON)
                     config         the run's configuration (JSON)
                     tokenizer      the vocabulary with its fingerprint (JSON)
                     metrics        the metrics of the step (JSON, written by Orbax itself)
                     MANIFEST.json  size and checksum of every file, see `manifest`

Model and training are items of their own, so that inference never reads the optimizer state, twice
the size of the parameters. Orbax writes a step under a temporary name and renames it when it is
complete. What happens to it later, on disks and in copies, the manifest shows: a damaged step is
passed over by readers, and set aside as STEP.damaged by the run that resumes.
"""

import contextlib
import logging
from collections.abc import Collection, Iterator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from groupvit_jax.data.storage.objects import find_objects, is_remote
from groupvit_jax.data.text import vocabulary
from groupvit_jax.data.text.vocabulary import Vocabulary
from groupvit_jax.runs import manifest
from groupvit_jax.runs.configuration import config_from_dict
from groupvit_jax.runs.files import read_json
from groupvit_jax.runs.layout import CHECKPOINTS
from groupvit_jax.typing import PyTree

logger = logging.getLogger(__name__)

MODEL, TRAINING = "model", "training"
DATA_POSITION, CONFIG, TOKENIZER = "data_position", "config", "tokenizer"
METRICS = "metrics"
ARRAY_ITEMS = (MODEL, TRAINING)
JSON_ITEMS = (DATA_POSITION, CONFIG, TOKENIZER)
INFERENCE_ITEMS = (MODEL, CONFIG, TOKENIZER)
# In Orbax's metadata of a step: whether it was written with a manifest.
MARK = {"manifest": True}
_JSON_FILE = "metadata"  # the name that Orbax's JSON handler gives the file of an item


def find_step(path: Path) -> Path | None:
    """Return the step that a path names, whole or not; None if it names none.

    Args:
      path: a step, or a run's folder or its checkpoints, which stand for their last step.
    """
    path = path.absolute()  # Orbax refuses relative paths
    if _is_step(path):
        return path
    return next(filter(_is_step, _steps_of(path)), None)


def find_whole_step(path: Path) -> Path:
    """Return the step that a path names, verified as far as inference reads it.

    Nothing is renamed: the run that owns a damaged step may be running.

    Args:
      path: a step, or a run's folder or its checkpoints, which stand for their last whole step.

    Raises:
      ValueError: the step is damaged, or all steps are.
    """
    path = path.absolute()
    steps = [path] if _is_step(path) else _steps_of(path)
    damages: list[str] = []
    for step in steps:
        if (damage := find_damage(step, INFERENCE_ITEMS)) is None:
            for line in damages:
                logger.warning("damaged step passed over: %s", line)
            log = logger.warning if damages else logger.info
            log("step %s is read (%s)", step.name, step)
            return step
        damages.append(damage)
    raise ValueError(_none_whole(path, damages))


def set_aside_damaged(directory: Path) -> list[str]:
    """Rename the damaged steps, so that the last step is a whole one.

    The content of the last whole step is verified; of the steps before it only what Orbax reads of
    every step (the metrics), and the sizes of the files.

    Args:
      directory: the folder of a run's steps, used by this run alone.

    Returns:
      The damages of the steps that were renamed.

    Raises:
      ValueError: there are steps and none is whole; nothing is renamed.
    """
    items: Collection[str] | None = None
    damaged: dict[Path, str] = {}
    steps = _numbered(directory)
    for step in steps:
        if damage := find_damage(step, items):
            damaged[step] = damage
        else:
            items = (METRICS,)
    if steps and len(damaged) == len(steps):
        found = _none_whole(directory, list(damaged.values()))
        raise ValueError(f"{found}, or move the folder away to start from the beginning")
    return [f"{damage}; set aside as {_set_aside(step).name}" for step, damage in damaged.items()]


def roll_back(directory: Path, step: int, name: str = "") -> Path | None:
    """Move the steps behind one out of the way, so that it is the last.

    It is done once: a scheduler starts the same command again, which must not undo what the run has
    done since.

    Args:
      directory: the folder of a run's steps, used by this run alone.
      step: the step to go on from.
      name: of the directory for users, where it is not the folder.

    Returns:
      The folder with the later steps; None if an earlier start has made it.

    Raises:
      ValueError: there is no such step, or it is damaged; nothing is moved.
    """
    name = name or str(directory)
    target = directory / rolled_back(step)
    if target.exists():
        return None
    steps = {int(path.name): path for path in _numbered(directory)}
    if step not in steps:
        kept = ", ".join(map(str, sorted(steps))) or "none"
        raise ValueError(f"--restore_step: {step} found, expected a step in {name} ({kept})")
    if damage := find_damage(steps[step]):
        damage = damage.replace(str(directory), name)
        raise ValueError(f"--restore_step={step}: {damage}, expected a whole step")
    # Named when all are moved: a start that is killed here is gone on with by the next.
    unfinished = directory / f"rolling_back_to_{step}"
    unfinished.mkdir(exist_ok=True)
    for number, path in steps.items():  # the last first: each that remains is whole
        if number > step:
            path.rename(unfinished / path.name)
    return unfinished.rename(target)


def rolled_back(step: int | str) -> str:
    """Return the name of the folder with the steps that `roll_back` has moved."""
    return f"rolled_back_to_{step}"


def find_damage(step: Path, items: Collection[str] | None = None) -> str | None:
    """Return which file of a step is damaged and how; None for a whole step.

    A step that an older version wrote has no manifest and can't be verified, which is logged.

    Args:
      step: the folder of a step.
      items: see `manifest.find_damage`.
    """
    if (step / manifest.MANIFEST).exists():
        return manifest.find_damage(step, items)
    try:
        metadata = read_json(step / manifest.STEP_METADATA)
    except (OSError, ValueError) as error:
        return f"{error} (not a whole step of a run)"
    if metadata.get("custom_metadata") == MARK:
        return f"{step / manifest.MANIFEST}: no such file (the step is incomplete)"
    if not (step / MODEL).is_dir():
        return f"{step / MODEL}: no such folder (the step is incomplete or not of a run)"
    logger.warning("%s has no manifest: written by an older version, not verified", step)
    return None


def has_checkpoints(workdir: Path | str) -> bool:
    """Return whether a run, in a folder or at a URL, has begun to write checkpoints."""
    if is_remote(str(workdir)):
        return bool(find_objects(f"{workdir}/{CHECKPOINTS}"))
    workdir = Path(workdir)
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
      ValueError: it is damaged in every step.
    """
    damages = []
    for step in filter(_is_step, _numbered(workdir / CHECKPOINTS)):
        # All steps of a run hold the same one; what is damaged is said when the run resumes.
        has_manifest = (step / manifest.MANIFEST).exists()
        damage = manifest.find_damage(step, (TOKENIZER,)) if has_manifest else None
        if damage is None:
            return stored_vocabulary(step)
        damages.append(damage)
    if damages:
        raise ValueError(_none_whole(workdir / CHECKPOINTS, damages))
    return None


def read_model(step: Path) -> PyTree:
    """Return a step's {"params", "batch_stats"} as NumPy arrays, on one host.

    Restored as NumPy, because the shardings in the checkpoint name the devices that wrote it, which
    this host need not have.

    Raises:
      ValueError: a step without a manifest is damaged.
    """
    # Asked for metadata, the checkpointer would look for a step's in the item, and warn.
    handler = ocp.PyTreeCheckpointHandler()
    with naming_damage(step), ocp.Checkpointer(handler) as checkpointer:
        described = handler.metadata(step / MODEL).tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), described)
        return checkpointer.restore(step / MODEL, ocp.args.PyTreeRestore(restore_args=as_numpy))


@contextlib.contextmanager
def naming_damage(step: Path) -> Iterator[None]:
    """Raise errors of the block as a ValueError that names the step, if it has no manifest.

    A step of an older version shows its damage only when Orbax and TensorStore read it, in errors
    of many types. One with a manifest has been verified: its errors are no damage.
    """
    try:
        yield
    # Too little memory on this host is no damage of the step.
    except MemoryError:
        raise
    except Exception as error:
        if (step / manifest.MANIFEST).exists():
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(
            f"{step}: can't be read ({reason}); the step has no {manifest.MANIFEST} and is damaged "
            "or incomplete: name another step, or restore a copy of it"
        ) from error


def _json_file(step: Path, item: str) -> Path:
    return step / item / _JSON_FILE


def _is_step(path: Path) -> bool:
    # Any name will do where there is a manifest: people rename steps when they copy them.
    named = path.name.isdecimal() or (path / manifest.MANIFEST).is_file()
    return named and (path / MODEL).is_dir()


def _steps_of(path: Path) -> list[Path]:
    return _numbered(path) or _numbered(path / CHECKPOINTS)


def _numbered(directory: Path) -> list[Path]:
    """Return the folders in a directory that Orbax takes for steps, the last step first."""
    # Without Orbax's temporary names and ours for damaged steps, which begin with a number as well.
    found = [path for path in directory.glob("[0-9]*") if path.name.isdecimal() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def _set_aside(step: Path) -> Path:
    """Rename a damaged step and return its new path."""
    number, target = 1, step.with_name(f"{step.name}.damaged")
    while target.exists():  # the same step, written again after a resume and damaged again
        number += 1
        target = step.with_name(f"{step.name}.damaged{number}")
    return step.rename(target)


def _none_whole(path: Path, damages: list[str]) -> str:
    return f"{path}: no whole step found ({'; '.join(damages)}), restore a copy of one"
