"""Where the state of a run comes from."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from groupvit_jax.train.checkpoint import Checkpointer
from groupvit_jax.train.state import TrainState
from groupvit_jax.typing import PyTree

logger = logging.getLogger(__name__)

ReadVariables = Callable[[str], Mapping[str, PyTree]]


def start(
    checkpointer: Checkpointer,
    abstract_state: TrainState,
    fresh_state: Callable[[], TrainState],
    init_from: str,
    read_variables: ReadVariables,
) -> tuple[TrainState, Mapping[str, Any] | None]:
    """Returns the state to go on from and its data position (None: the beginning).

    1. The workdir holds a checkpoint: resume from the last one, state and data position. What
       `init_from` says is ignored, for the run has already been initialised from it.
    2. `init_from` names a checkpoint: a fresh state with its parameters and batch statistics;
       optimizer, step and data start from the beginning.
    3. Neither: a fresh state from the seed.

    Args:
      checkpointer: of the workdir.
      abstract_state: shapes, dtypes and shardings of the state.
      fresh_state: makes the state of case 3.
      init_from: `config.init_from`.
      read_variables: reads {"params": ..., "batch_stats": ...} as host arrays for case 2.

    Raises:
      ValueError: the checkpoint is of another architecture, or nothing of `init_from` fits.
      FileNotFoundError: `init_from` doesn't exist.
    """
    restored = checkpointer.restore_latest(abstract_state)
    if restored is not None:
        state, position = restored
        logger.info("resumed after step %d of this workdir", int(jax.device_get(state.step)))
        return state, position
    if init_from:
        return initialise(fresh_state(), read_variables(init_from), init_from), None
    logger.info("fresh start from the seed")
    return fresh_state(), None


def initialise(
    state: TrainState, variables: Mapping[str, PyTree], origin: str | Path
) -> TrainState:
    """Returns the state with those variables of the same name and shape taken over.

    What is taken and what is left as it was (other name or other shape) is logged.

    Args:
      state: a fresh state.
      variables: {"params": ..., "batch_stats": ...} as host arrays.
      origin: where they are from, for the messages.

    Raises:
      ValueError: not one variable fits.
    """
    found = _by_name({name: variables.get(name, {}) for name in ("params", "batch_stats")})
    taken, left = [], []

    def take(path: tuple[Any, ...], own: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        value = found.pop(name, None)
        if value is None or value.shape != own.shape:
            left.append(f"{name} {own.shape} (there: {getattr(value, 'shape', 'absent')})")
            return own
        taken.append(name)
        value = np.asarray(value, own.dtype)
        return jax.make_array_from_callback(own.shape, own.sharding, lambda index: value[index])

    own = dict(params=state.params, batch_stats=state.batch_stats)
    merged = jax.tree_util.tree_map_with_path(take, own)
    if not taken:
        raise ValueError(f"config.init_from={origin}: no variable fits this model, expected some")
    logger.info("%s: %d variables taken", origin, len(taken))
    for line in left:
        logger.warning("%s: left at its initial value: %s", origin, line)
    for name in found:
        logger.warning("%s: not used: %s", origin, name)
    return dataclasses.replace(state, **merged)


def _by_name(tree: PyTree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
