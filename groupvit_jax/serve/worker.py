"""One thread that does the work of all visitors, with bounds on waiting and on time."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class Worker:
    """Runs one piece of work at a time, in the order of arrival.

    One thread bounds the memory: two photos are never decoded or segmented at once. Visitors with
    several photos take turns with others, because every photo is a piece of its own.
    """

    def __init__(self, seconds: float, waiting: int) -> None:
        """Start no thread yet.

        Args:
          seconds: time until an answer, waiting included.
          waiting: pieces that may wait or run at a time.
        """
        self._seconds, self._places = seconds, threading.Semaphore(waiting)
        self._waiting = waiting
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="segment")

    def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Return what `work(*arguments)` returns; raise what it raises.

        Raises:
          ValueError: too many pieces are waiting, or the time is over. Work that has begun goes on
            in its thread to the end, because nothing can stop a program on the device; how long
            that takes is bounded by the size of the photo and the number of labels.
        """
        if not self._places.acquire(blocking=False):
            raise ValueError(
                f"the page is busy: {self._waiting} photos are waiting; try again in a moment"
            )
        future: Future[T] = self._executor.submit(work, *arguments)
        future.add_done_callback(lambda _: self._places.release())
        try:
            return future.result(self._seconds)
        except TimeoutError:
            if future.done() and not future.cancelled():
                return future.result()  # done in the last moment, or the work's own error
            future.cancel()
            raise ValueError(
                f"no answer within {self._seconds:g} seconds; try again with fewer labels or later"
            ) from None

    def close(self) -> None:
        """Drop what waits and stop after the piece in progress."""
        self._executor.shutdown(wait=False, cancel_futures=True)
