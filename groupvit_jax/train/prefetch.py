"""Reading batches and sending them to the devices in a thread, some ahead of the training step.

The transfer of a batch then overlaps with the steps before it, and the loop itself transfers
nothing.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np

DeviceBatch = dict[str, jax.Array]
_POLL_SECONDS = 0.5
_PATIENCE_SECONDS = 10.0  # a remote read may hang until its own timeout


class DevicePrefetcher:
    """Keeps `size` batches ready on the devices.

    An error in the reading thread is raised by the `next_batch` that would have returned its batch.
    """

    def __init__(
        self,
        host_batches: Iterable[Mapping[str, np.ndarray]],
        to_device: Callable[[Mapping[str, np.ndarray]], DeviceBatch],
        size: int,
    ) -> None:
        """Start the reading thread.

        Args:
          host_batches: this host's rows of each batch.
          to_device: makes a global batch of them; runs in the reading thread.
          size: number of batches to keep ready, at least 1.
        """
        # At least 1: a queue of size 0 has no limit.
        self._queue: queue.Queue[DeviceBatch | Exception | None] = queue.Queue(max(size, 1))
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._read, args=(host_batches, to_device), daemon=True, name="prefetch"
        )
        self._thread.start()

    def next_batch(self, give_up: Callable[[], bool]) -> DeviceBatch | None:
        """Return the next batch, or None if `give_up` returns True while none is ready.

        Raises:
          ValueError: there are no more batches.
        """
        while True:
            try:
                # With a timeout: a request to stop may arrive while the readers hang.
                item = self._queue.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                if give_up():
                    return None
                continue
            if item is None:
                raise ValueError("the training data have ended, expected batches without end")
            if isinstance(item, Exception):
                # A scheduler signals all processes of a job: readers that it has stopped are no
                # error of the run.
                if give_up():
                    return None
                raise item
            return item

    def close(self) -> None:
        """End the reading; wait for a read under way, but not for ever.

        A thread that is still inside a C++ library when the interpreter ends makes it abort.
        """
        self._closed.set()
        while not self._queue.empty():
            self._queue.get_nowait()
        self._thread.join(timeout=_PATIENCE_SECONDS)

    def _read(
        self,
        host_batches: Iterable[Mapping[str, np.ndarray]],
        to_device: Callable[[Mapping[str, np.ndarray]], DeviceBatch],
    ) -> None:
        try:
            for batch in host_batches:
                if not self._put(to_device(batch)):
                    return
            self._put(None)
        except Exception as error:
            self._put(error)

    def _put(self, item: DeviceBatch | Exception | None) -> bool:
        while not self._closed.is_set():
            try:
                # With a timeout: nothing takes batches out any more after `close`.
                self._queue.put(item, timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False
