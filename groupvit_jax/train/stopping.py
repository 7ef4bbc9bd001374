"""Stopping on SIGTERM, which schedulers send some seconds before they take a machine away."""

import logging
import signal
import threading
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils

logger = logging.getLogger(__name__)


class StopRequest:
    """Context that catches SIGTERM and answers whether to stop.

    With several processes JAX's preemption service catches the signal instead. It makes all of them
    stop after the same step: a process that stopped one step earlier would leave the others waiting
    in a collective.
    """

    def __init__(self) -> None:
        self._received = threading.Event()
        self._previous: signal._HANDLER = None
        self._installed = False

    def __enter__(self) -> "StopRequest":
        """Install the handler, in the main thread only, as Python demands."""
        main = threading.current_thread() is threading.main_thread()
        if main and jax.process_count() == 1:
            self._previous = signal.signal(signal.SIGTERM, self._receive)
            self._installed = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Restore the previous handler."""
        if self._installed:
            signal.signal(signal.SIGTERM, self._previous)

    def received(self) -> bool:
        """Return whether this process has received the signal."""
        return self._received.is_set()

    def agreed(self, step: int) -> bool:
        """Return whether all processes are to stop after `step`.

        Every process has to ask after every step, because the answer is a collective.
        """
        if jax.process_count() == 1:
            return self.received()
        return multihost_utils.reached_preemption_sync_point(step)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        # Only a flag: a signal may arrive anywhere in a step, where no state could be saved.
        self._received.set()
