"""A request to stop (SIGTERM, as schedulers send it before they take a machine away)."""

import logging
import signal
import threading
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils

logger = logging.getLogger(__name__)


class StopRequest:
    """Catches SIGTERM while it is entered as a context.

    With several processes JAX's preemption service catches the signal instead, and makes all of
    them stop after the same step.
    """

    def __init__(self) -> None:
        self._received = threading.Event()
        self._previous: signal._HANDLER = None
        self._installed = False

    def __enter__(self) -> "StopRequest":
        """Installs the handler; Python allows it in the main thread only."""
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
        """Restores the handler that was there before."""
        if self._installed:
            signal.signal(signal.SIGTERM, self._previous)

    def received(self) -> bool:
        """Returns whether this process got the signal."""
        return self._received.is_set()

    def agreed(self, step: int) -> bool:
        """Returns whether all processes are to stop after `step`; each asks at every step."""
        if jax.process_count() == 1:
            return self.received()
        return multihost_utils.reached_preemption_sync_point(step)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self._received.set()
