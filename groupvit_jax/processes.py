"""Start-up of worker processes, whatever they work on."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any


def end_with_parent() -> None:
    """End this process soon after its parent: a killed parent can't end its workers."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# How multiprocessing finds the main script, which a spawned process would run again.
_MARKS = ("__file__", "__spec__")
_lock = threading.Lock()
_hidden: dict[str, Any] = {}
_hiding = 0


@contextlib.contextmanager
def hidden_main() -> Iterator[None]:
    """Start processes by "spawn" that don't run the main script again.

    Otherwise scripts without `if __name__ == "__main__":` couldn't call a function that starts
    processes. Functions of the script itself reach the processes only by value (cloudpickle).
    """
    global _hiding
    main = vars(sys.modules["__main__"])
    with _lock:  # threads may start processes at the same time
        if not _hiding:
            _hidden.update({name: main[name] for name in _MARKS if name in main})
            main.pop("__file__", None)
            main["__spec__"] = None
        _hiding += 1
    try:
        yield
    finally:
        with _lock:
            _hiding -= 1
            if not _hiding:
                main.update(_hidden)
                _hidden.clear()
