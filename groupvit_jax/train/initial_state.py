"""Where the state of a run comes from: resumed, initialised from other weights, or fresh."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
from ml_collections import ConfigDict

from groupvit_jax.train.checkpointer import Checkpointer
from groupvit_jax.train.state import TrainState, start_average
from groupvit_jax.typing import Params, PyTree

logger = logging.getLogger(__name__)


@runtime_checkable
class Report(Protocol):
    """Account of an initialisation: what was loaded, resized, left or unused."""

    def lines(self) -> list[str]:
        """Return the account, one fact a line."""


# (path, fresh parameters, fresh batch statistics, config.model) -> those with the path's values.
InitialiseFrom = Callable[[str, Params, PyTree, ConfigDict], tuple[Params, PyTree, Report]]
# By the field of the configuration that holds the path.
Initialisers = Mapping[str, InitialiseFrom]
# In the order in which they are read.
INIT_FIELDS = ("init_from", "image_init_from", "text_init_from")


def initial_state(
    config: ConfigDict,
    checkpointer: Checkpointer,
    abstract_state: TrainState,
    fresh_state: Callable[[], TrainState],
    initialisers: Initialisers,
) -> tuple[TrainState, Mapping[str, Any] | None]:
    """Return the state to start from and its data position (None: the beginning).

    0. `--restore_step` has moved later checkpoints away (`OpenWorkdir.roll_back`); then case 1.
    1. The workdir holds a checkpoint: resume from the last one, state and data position.
       The fields of `INIT_FIELDS` are ignored, because the run was initialised from them when it
       began.
    2. `config.init_from` names weights of any kind: a fresh state with their parameters and batch
       statistics; optimizer, step and data start from the beginning. After that, or without it,
       the image tower is read from `config.image_init_from` and the text tower from
       `config.text_init_from`.
    3. Neither: a fresh state from the seed.

    Args:
      config: the whole configuration.
      checkpointer: the workdir's checkpoints.
      abstract_state: shapes, dtypes and shardings of the state.
      fresh_state: makes the state of case 3.
      initialisers: readers for case 2.

    Raises:
      ValueError: the checkpoint has another architecture, nothing in `init_from` fits, or
        `text_init_from` is of another text tower.
      FileNotFoundError: one of them doesn't exist.
    """
    restored = checkpointer.restore_latest(abstract_state)
    if restored is not None:
        state, position = restored
        logger.info("resuming after step %d of this workdir", int(jax.device_get(state.step)))
        return state, position
    state = fresh_state()
    sources = {field: path for field in INIT_FIELDS if (path := config.get(field))}
    if not sources:
        logger.info("fresh start from seed %d", config.seed)
    for field, path in sources.items():
        if (read := initialisers.get(field)) is None:
            raise ValueError(f"config.{field}={path!r}: nothing here can read it")
        params, batch_stats, report = read(path, state.params, state.batch_stats, config.model)
        for line in report.lines():
            logger.info("%s: %s", path, line)
        variables = {"params": params, "batch_stats": batch_stats}
        # The average begins at the loaded values; `fresh_state` began it at random ones.
        average = start_average(variables) if state.average else {}
        state = dataclasses.replace(state, **variables, average=average)
    return state, None
