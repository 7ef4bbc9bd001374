"""Hooks that count where the wall time of a run goes (`runs.goodput`)."""

from groupvit_jax.runs.goodput import Goodput
from groupvit_jax.train.hooks import Hook, StepContext


class Timed(Hook):
    """Counts the time of another hook."""

    def __init__(self, hook: Hook, goodput: Goodput, kind: str) -> None:
        """Take the hook and the kind of its time."""
        self._hook, self._goodput, self._kind = hook, goodput, kind

    def before_step(self, step: int) -> None:
        """See the hook."""
        with self._goodput.spending(self._kind):
            self._hook.before_step(step)

    def after_step(self, context: StepContext) -> None:
        """See the hook."""
        with self._goodput.spending(self._kind):
            self._hook.after_step(context)

    def at_end(self, context: StepContext) -> None:
        """See the hook."""
        with self._goodput.spending(self._kind):
            self._hook.at_end(context)


class RecordGoodput(Hook):
    """Adds the shares of the wall time to every record with a loss."""

    def __init__(self, goodput: Goodput) -> None:
        """Take the run's time."""
        self._goodput = goodput

    def after_step(self, context: StepContext) -> None:
        """Add to the record."""
        if "loss" in context.record:
            context.record.update(self._goodput.record())
