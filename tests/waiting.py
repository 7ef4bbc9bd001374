"""How long tests wait for other processes and threads."""

import time

# Seconds. Ends a hang, and no more: on a loaded machine a minute's work may take ten.
PATIENCE = 900


def wait_until(condition, check=lambda: None, explain=lambda: None, interval=0.02):
    """Poll until `condition()`.

    Args:
      condition: ends the wait.
      check: is called between polls; asserts that there is something to wait for.
      explain: what to say when patience ends.
      interval: seconds between polls.
    """
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, explain()
        check()
        time.sleep(interval)
