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
# By the field of the configuration that holds the path.
Initialisers = Mapping[str, InitialiseFrom]
INIT_FIELDS = ("init_from", "text_init_from")  # in the order in which they are read


def start(
    config: ConfigDict,
    checkpointer: Checkpointer,
    abstract_state: TrainState,
    fresh_state: Callable[[], TrainState],
    initialisers: Initialisers,
) -> tuple[TrainState, Mapping[str, Any] | None]:
    """Returns the state to go on from and its data position (None: the beginning).

    1. The workdir holds a checkpoint: resume from the last one, state and data position. What
       `config.init_from` and `config.text_init_from` say is ignored, for the run has been
       initialised from them already.
    2. `config.init_from` names a checkpoint of any kind: a fresh state with its parameters and
       batch statistics; optimizer, step and data start from the beginning. Then, or with it alone,
       the text tower of `config.text_init_from`.
    3. Neither: a fresh state from the seed.

    Args:
      config: the whole configuration.
      checkpointer: of the workdir.
      abstract_state: shapes, dtypes and shardings of the state.
      fresh_state: makes the state of case 3.
      initialisers: readers of case 2.

    Raises:
      ValueError: the checkpoint is of another architecture, or nothing of `init_from` fits, or the
        text tower isn't that of `text_init_from`.
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
        state = _initialised(state, path, field, initialisers.get(field), config.model)
    return state, None


def _initialised(
    state: TrainState, path: str, field: str, read: InitialiseFrom | None, model_config: ConfigDict
) -> TrainState:
    if read is None:
        raise ValueError(f"config.{field}={path!r}: nothing here can read it")
    params, batch_stats, report = read(path, state.params, state.batch_stats, model_config)
    for line in report.lines():
        logger.info("%s: %s", path, line)
    return dataclasses.replace(state, params=params, batch_stats=batch_stats)
