"""How far a run has read its data, so that a resumed run repeats and skips no example.

The order of the examples is a function of the seed and the number of examples alone: a position is
a few integers, not the state of the readers.
"""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class DataPosition:
    """The part of the data that one start of a run reads.

    Attributes:
      first_step: steps done before this start.
      first_batch: number of the first batch to read, in batches of the current size; equal to
        `first_step` unless the batch size has changed since the run began.
      batch_size: global batch size.
      seed: seed of the order.
      num_examples: samples in the sources; with the seed it decides the order.
    """

    first_step: int
    first_batch: int
    batch_size: int
    seed: int
    num_examples: int

    def after(self, step: int) -> dict[str, int]:
        """Return the position after `step` steps, as JSON for the checkpoint."""
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
    """Return the position to resume from; changes since it was saved are logged.

    With another batch size the run resumes at the batch of the new size that holds the next
    example, so at most part of one batch is seen twice. With another seed or other sources it
    resumes after the same number of examples, in the new order.

    Args:
      saved: a position from `DataPosition.after`; None for a new run.
      batch_size: current batch size.
      seed: current seed.
      num_examples: current number of samples in the sources.
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
