"""How far a run has read its data."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class DataPosition:
    """The data that a process reads: batches of one size, from one on.

    Attributes:
      first_step: steps done when the process starts.
      first_batch: number of its first batch, in batches of today's size; `first_step` as long as
        nothing about the data has changed since the run began.
      batch_size: global.
      seed: of the order.
      num_examples: samples in the sources; with the seed it decides the order.
    """

    first_step: int
    first_batch: int
    batch_size: int
    seed: int
    num_examples: int

    def after(self, step: int) -> dict[str, int]:
        """Returns what is saved with the state after `step` steps."""
        return dict(
            step=step,
            examples_seen=(self.first_batch + step - self.first_step) * self.batch_size,
            batch_size=self.batch_size,
            seed=self.seed,
            num_examples=self.num_examples,
        )


def continue_from(
    saved: Mapping[str, Any] | None, *, batch_size: int, seed: int, num_examples: int
) -> DataPosition:
    """Returns the position to go on from; what has changed since it was saved is logged.

    With another batch size the run goes on at the batch of the new size that holds the next
    example, so at most one batch is seen in part twice. With another seed or other sources it goes
    on at the same number of examples, in the new order.

    Args:
      saved: what `DataPosition.after` gave; None for a run that begins.
      batch_size: today's.
      seed: today's.
      num_examples: today's.
    """
    if saved is None:
        return DataPosition(0, 0, batch_size, seed, num_examples)
    for name, value in (("seed", seed), ("num_examples", num_examples)):
        if saved[name] != value:
            logger.warning(
                "after step %d the data change (%s was %s, is %s): their order doesn't continue",
                saved["step"], name, saved[name], value,
            )  # fmt: skip
    first_batch, repeated = divmod(saved["examples_seen"], batch_size)
    if repeated:
        logger.warning("the batch size changes: %d examples are seen twice", repeated)
    return DataPosition(saved["step"], first_batch, batch_size, seed, num_examples)
