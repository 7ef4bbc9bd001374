"""Where the state of a run comes from."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
from ml_collections import ConfigDict

from groupvit_jax.train.checkpoint import Checkpointer
from groupvit_jax.train.state import TrainState
from groupvit_jax.typing import Params, PyTree

logger = logging.getLogger(__name__)


@runtime_checkable
class Report(Protocol):
    """Says what was loaded and what was left."""

    def lines(self) -> list[str]:
        """Returns one line for each thing to say."""


# (path, fresh parameters, fresh batch statistics, config.model) -> those with the path's values.
InitialiseFrom = Callable[[str, Params, PyTree, ConfigDict], tuple[Params, PyTree, Report]]


def start(
    config: ConfigDict,
    checkpointer: Checkpointer,
    abstract_state: TrainState,
    fresh_state: Callable[[], TrainState],
    initialise_from: InitialiseFrom | None,
) -> tuple[TrainState, Mapping[str, Any] | None]:
    """Returns the state to go on from and its data position (None: the beginning).

    1. The workdir holds a checkpoint: resume from the last one, state and data position. What
       `config.init_from` says is ignored, for the run has been initialised from it already.
    2. `config.init_from` names a checkpoint of any kind: a fresh state with its parameters and
       batch statistics; optimizer, step and data start from the beginning.
    3. Neither: a fresh state from the seed.

    Args:
      config: the whole configuration.
      checkpointer: of the workdir.
      abstract_state: shapes, dtypes and shardings of the state.
      fresh_state: makes the state of case 3.
      initialise_from: reads the checkpoint of case 2; None where there is no such reader.

    Raises:
      ValueError: the checkpoint is of another architecture, or nothing of `init_from` fits.
      FileNotFoundError: `init_from` doesn't exist.
    """
    restored = checkpointer.restore_latest(abstract_state)
    if restored is not None:
        state, position = restored
        logger.info("resuming after step %d of this workdir", int(jax.device_get(state.step)))
        return state, position
    if not config.init_from:
        logger.info("fresh start from seed %d", config.seed)
        return fresh_state(), None
    if initialise_from is None:
        raise ValueError(f"config.init_from={config.init_from!r}: nothing here can read it")
    state = fresh_state()
    params, batch_stats, report = initialise_from(
        config.init_from, state.params, state.batch_stats, config.model
    )
    for line in report.lines():
        logger.info("%s: %s", config.init_from, line)
    return dataclasses.replace(state, params=params, batch_stats=batch_stats), None
