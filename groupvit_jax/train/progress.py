"""What a run does before its first step, which can take minutes without any other sign."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator

logger = logging.getLogger(__name__)

_EVERY_SECONDS = 30.0


@contextlib.contextmanager
def telling(what: str, every_seconds: float = _EVERY_SECONDS) -> Iterator[None]:
    """Log what the block does, and while it lasts how long it has taken so far."""
    start, done = time.monotonic(), threading.Event()

    def tell() -> None:
        while not done.wait(every_seconds):
            logger.info("%s: %.0f s so far", what, time.monotonic() - start)

    logger.info("%s ...", what)
    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
