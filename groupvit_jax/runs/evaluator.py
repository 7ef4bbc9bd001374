"""The interface between the training loop, which calls evaluators, and `eval`, which makes them."""

from typing import Protocol, runtime_checkable

from groupvit_jax.typing import Params


@runtime_checkable
class Evaluator(Protocol):
    """Measures a model; `name` prefixes its metrics in records, as in `NAME/miou`."""

    name: str

    def __call__(self, variables: Params) -> dict[str, float]:
        """Return the metrics of a model with these variables ("params", "batch_stats")."""
