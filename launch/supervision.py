"""How one of several processes ends: soon after the others, with a line that says what to do.

When a peer has died, JAX aborts the process (SIGABRT) from a C++ thread, where Python can neither
catch it nor print a reason. So the process that a user starts only waits for a child that does the
work, and reports how the child ended.
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

# Silence after which the others take a process for dead, and until which the whole pod idles. JAX's
# default is 100.
HEARTBEAT_SECONDS = 30
# How long the processes may take to find each other, as JAX's default.
START_SECONDS = 300
# An error that all processes have, such as a wrong flag, appears in each at a slightly different
# time. The end of the first would abort the others before they could report it.
_LINGER_SECONDS = 5
_RESUME = "start the same command again on all hosts: it resumes from the last checkpoint"
# Pipe by which the child reports its exit code before it ends: an abort while it waits for the
# others would replace the code.
_own_code = -1
# Pipe by which the child says that it has joined the others.
_joined = -1


def work_in_a_child(not_joined: str = "") -> None:
    """Fork; return in the child, wait for it in the parent and end with its exit code.

    Call it before JAX starts threads, which a fork doesn't copy. The parent passes SIGTERM on to
    the child; the child ends soon after the parent if that is killed.

    Args:
      not_joined: the error if the child is aborted before it calls `joined`: where the coordinator
        doesn't answer, JAX ends the process like that.
    """
    global _own_code, _joined
    told, _joined = os.pipe()
    os.set_blocking(told, False)
    codes, _own_code = os.pipe()
    os.set_blocking(codes, False)
    # A SIGTERM that comes before the parent can pass it on waits until it can.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        end_with_parent()
        sys.excepthook = _end_at_once
        return
    # A terminal sends SIGINT to the child as well, whose exit decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda signum, frame: os.kill(child, signum))
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    os.close(_own_code)
    os.close(_joined)
    status = os.waitpid(child, 0)[1]
    with contextlib.suppress(BlockingIOError):  # nothing reported
        if said := os.read(codes, 1):
            os._exit(said[0])
    if not_joined and os.waitstatus_to_exitcode(status) == -signal.SIGABRT and not os.read(told, 1):
        print(f"error: {not_joined}", file=sys.stderr, flush=True)
        os._exit(LOST)
    os._exit(_code(status))


def joined() -> None:
    """Say that this process has found the others: from now on an abort means that one has died."""
    os.write(_joined, b".")


def end(code: int) -> NoReturn:
    """End this process; one of several does so without JAX's shutdown, which waits for all."""
    if _own_code >= 0:
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(_own_code, bytes([code]))
        time.sleep(_LINGER_SECONDS)
        os._exit(code)
    sys.exit(code)


def _code(status: int) -> int:
    """Return the exit code for the child's status; print a line if a signal ended it."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    if -code == signal.SIGTERM:  # before JAX caught it, so there was nothing to save
        return STOPPED
    name = signal.Signals(-code).name
    why = "another process of this run has died" if name == "SIGABRT" else "see the log above"
    print(f"error: ended by {name} ({why}); {_RESUME}", file=sys.stderr, flush=True)
    return LOST


def _end_at_once(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print an unhandled error and end, instead of waiting for the others at exit."""
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
        text = " ".join(str(error).split())
        print(f"error: lost the other processes of this run ({text}); {_RESUME}", file=sys.stderr)
        end(LOST)
    traceback.print_exception(kind, error, trace)
    end(FAILED)
