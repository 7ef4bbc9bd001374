"""Start-up of worker processes, whatever they work on."""

import contextlib
import os
import sys
import threading
import time
import types
from collections.abc import Iterator


def end_with_parent() -> None:
    """End this process soon after its parent: a killed parent can't end its workers."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def hidden_main() -> Iterator[None]:
    """Start processes by "spawn" that don't run the main script again.

    Otherwise scripts without `if __name__ == "__main__":` couldn't call a function that starts
    processes. The functions that the processes run must not be the script's own.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")  # has no file to run
    try:
        yield
    finally:
        sys.modules["__main__"] = main
