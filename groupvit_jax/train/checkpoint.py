"""Checkpoints: everything that a run needs to go on, in one folder per step.

    DIRECTORY/STEP/model          parameters and batch statistics: all that inference needs
                   training       optimizer state, step, random key
                   data_position  how far the data were read (JSON)
                   config         the run's configuration (JSON)
                   tokenizer      the vocabulary with its fingerprint (JSON)
                   metrics        the metrics of the step (JSON)

Orbax writes a step under a temporary name in the background and renames it when it is complete,
so a folder with a step's name is a whole checkpoint.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from groupvit_jax.data.text.vocabulary import Vocabulary, from_json, to_json
from groupvit_jax.train.state import TrainState
from groupvit_jax.typing import PyTree

# The state's fields by the item of the checkpoint that holds them.
MODEL_FIELDS = ("params", "batch_stats")
TRAINING_FIELDS = ("step", "opt_state", "key")
TOKENIZER = "tokenizer"


class Checkpointer:
    """Saves in the background, keeps the last n and the best, restores into any shardings."""

    def __init__(
        self,
        directory: Path | str,
        config: ConfigDict,
        run_config: Mapping[str, Any] | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        """Opens the directory, creates it where missing and removes half-written steps.

        Args:
          directory: where the step folders are.
          config: `config.checkpoint`.
          run_config: the whole configuration, to be kept in every checkpoint.
          vocabulary: likewise, so that a checkpoint needs no other file.
        """
        self._json = {"config": dict(run_config or {})}
        if vocabulary is not None:
            self._json[TOKENIZER] = to_json(vocabulary)
        self._directory = Path(directory).absolute()
        arrays = {name: ocp.StandardCheckpointHandler() for name in ("model", "training")}
        names = ("data_position", "config", TOKENIZER)
        json_items = {name: ocp.JsonCheckpointHandler() for name in names}
        self._manager = ocp.CheckpointManager(
            self._directory, options=_options(config), item_handlers=arrays | json_items
        )

    def save(
        self,
        step: int,
        state: TrainState,
        data_position: Mapping[str, Any],
        metrics: Mapping[str, float],
    ) -> None:
        """Copies the state to the host and writes it in the background.

        The state may be donated as soon as this returns. A step that is saved already is left as
        it is. Errors of an earlier background write are raised here.
        """
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            model=ocp.args.StandardSave(_fields(state, MODEL_FIELDS)),
            training=ocp.args.StandardSave(_fields(state, TRAINING_FIELDS)),
            data_position=ocp.args.JsonSave(dict(data_position)),
            **{name: ocp.args.JsonSave(content) for name, content in self._json.items()},
        )
        values = {name: float(value) for name, value in metrics.items()}
        self._manager.save(step, args=items, metrics=values, force=True)

    def restore_latest(self, abstract_state: TrainState) -> tuple[TrainState, dict] | None:
        """Returns the last state and its data position, or None where there is no checkpoint.

        Args:
          abstract_state: shapes, dtypes and the shardings to restore into, of any mesh.

        Raises:
          ValueError: the checkpoint is of another architecture or another optimizer.
        """
        self.wait()
        step = self.latest_step()
        if step is None:
            return None
        model = _fields(abstract_state, MODEL_FIELDS)
        training = _fields(abstract_state, TRAINING_FIELDS)
        found = self._manager.item_metadata(step)
        for name, tree in (("model", model), ("training", training)):
            check_same_arrays(self._directory / str(step) / name, found[name].tree, tree)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                model=ocp.args.StandardRestore(model),
                training=ocp.args.StandardRestore(training),
                data_position=ocp.args.JsonRestore(),
            ),
        )
        return (
            dataclasses.replace(abstract_state, **restored["model"], **restored["training"]),
            restored["data_position"],
        )

    def latest_step(self) -> int | None:
        """Returns the step of the last checkpoint."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Returns the step of the best checkpoint by `config.best_metric`."""
        return self._manager.best_step()

    def all_steps(self) -> list[int]:
        """Returns the steps that are kept."""
        return sorted(self._manager.all_steps())

    def wait(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is written and ends the background threads."""
        self._manager.close()


def stored_vocabulary(directory: Path) -> Vocabulary | None:
    """Returns the vocabulary of the last checkpoint; None where there is none, or an older one.

    Raises:
      ValueError: it is damaged.
    """
    steps = [int(path.name) for path in directory.glob("[0-9]*") if path.name.isdigit()]
    path = directory / str(max(steps, default=0)) / TOKENIZER / "metadata"
    return from_json(json.loads(path.read_text()), path) if path.is_file() else None


def check_same_arrays(origin: Path, found: PyTree, expected: PyTree) -> None:
    """Raises ValueError that names the first array whose shape or dtype is not as expected.

    Args:
      origin: where the arrays were found, for the message.
      found: leaves have a shape and a dtype.
      expected: leaves have a shape and a dtype.
    """
    there, here = _described(found), _described(expected)
    different = [name for name in {**here, **there} if there.get(name) != here.get(name)]
    different.sort(key=lambda name: not name.startswith("params/"))
    if different:
        name = different[0]
        raise ValueError(
            f"{origin}: {name} is {there.get(name, 'absent')} in the checkpoint, expected "
            f"{here.get(name, 'none of this name')} by this configuration ({len(different)} of "
            f"{len(here)} arrays differ); use another workdir or the configuration that wrote it"
        )


def _options(config: ConfigDict) -> ocp.CheckpointManagerOptions:
    def score(metrics: Mapping[str, float]) -> float:
        """Higher is better; without the metric, worse than any."""
        value = metrics.get(config.best_metric, math.nan)
        sign = {"max": 1, "min": -1}[config.best_mode]
        return -math.inf if math.isnan(value) else sign * value

    keep = [checkpoint_managers.LatestN(config.keep_last)]
    if config.best_metric:
        keep.append(checkpoint_managers.BestN(get_metric_fn=score, n=1))
    return ocp.CheckpointManagerOptions(
        best_fn=score,  # has the metrics written, and tells `best_step`
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(keep),
        cleanup_tmp_directories=True,
    )


def _fields(state: TrainState, names: tuple[str, ...]) -> dict[str, PyTree]:
    return {name: getattr(state, name) for name in names}


def _described(tree: PyTree) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): _kind(leaf) for path, leaf in leaves
    }


def _kind(leaf: Any) -> str:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):  # stored as the key's words
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return f"{leaf.dtype}{list(leaf.shape)}"
