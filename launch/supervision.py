"""How one process of several ends: soon after the others, with a line that says what to do.

JAX ends a process whose peer has died by SIGABRT, from a thread that Python doesn't see. So the
process that a user starts only waits for a child which does the work, and says how that ended.
"""

import contextlib
import os
import signal
import sys
import time
import traceback
from types import TracebackType
from typing import NoReturn

import jax

from groupvit_jax.processes import end_with_parent
from groupvit_jax.runs.exit_codes import FAILED, LOST, STOPPED

# A process that says nothing for so long is dead to the others.
HEARTBEAT_SECONDS = 30
# An error of all processes shows in each a little earlier or later, and the end of the first would
# end the others before they can say what it was.
_LINGER_SECONDS = 5
_GO_ON = "start the same command again on all hosts: it goes on from the last checkpoint"
# Where a child that works says its exit code before it ends.
_own_code = -1


def work_in_a_child() -> None:
    """Return in a child process; this process waits for it and ends as it ends.

    To be called before JAX starts threads. SIGTERM is passed on to the child, which ends soon
    after this process if that is killed.
    """
    global _own_code
    codes, _own_code = os.pipe()
    os.set_blocking(codes, False)
    child = os.fork()
    if child == 0:
        end_with_parent()
        sys.excepthook = _end_at_once
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the child too
    signal.signal(signal.SIGTERM, lambda signum, frame: os.kill(child, signum))
    os.close(_own_code)
    status = os.waitpid(child, 0)[1]
    with contextlib.suppress(BlockingIOError):  # nothing said
        if said := os.read(codes, 1):
            os._exit(said[0])
    os._exit(_code(status))


def end(code: int) -> NoReturn:
    """End this process; one of several doesn't wait for those that wait for it."""
    if _own_code >= 0:
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(_own_code, bytes([code]))
        time.sleep(_LINGER_SECONDS)
        os._exit(code)
    sys.exit(code)


def _code(status: int) -> int:
    """Return the exit code for the child's status, and says what a signal means."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    if -code == signal.SIGTERM:  # before JAX caught it, so there was nothing to save
        return STOPPED
    name = signal.Signals(-code).name
    why = "another process of this run has died" if name == "SIGABRT" else "see the log above"
    print(f"error: ended by {name} ({why}); {_GO_ON}", file=sys.stderr, flush=True)
    return LOST


def _end_at_once(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """End the process with an error that nobody handled, in place of waiting for the others."""
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
        text = " ".join(str(error).split())
        print(f"error: lost the other processes of this run ({text}); {_GO_ON}", file=sys.stderr)
        end(LOST)
    traceback.print_exception(kind, error, trace)
    end(FAILED)
