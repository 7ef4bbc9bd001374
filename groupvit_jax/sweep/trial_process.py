"""Running one trial: one process at a time in its folder, each start and end recorded."""

import contextlib
import dataclasses
import errno
import fcntl
import logging
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from groupvit_jax.runs.exit_codes import LOST, STOPPED
from groupvit_jax.runs.layout import TRIAL_LOCK_FILE, TRIAL_LOG_FILE
from groupvit_jax.runs.sweep_files import Record, State, Sweep, Trial, read_record, write_record
from groupvit_jax.sweep.folder import ATTEMPT, now
from groupvit_jax.sweep.trials import command_of

logger = logging.getLogger(__name__)

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# A small program that turns into the trial (exec). On Linux it first asks the kernel for a SIGTERM
# when the sweep's process dies, even by SIGKILL, so that the trial saves its state and ends. It is
# a program, not `preexec_fn`, because code between fork and exec may deadlock in a process with
# threads. Elsewhere a trial trains on, and its lock makes a new start of the sweep wait for it.
_BECOME = """
import ctypes, os, sys
if sys.platform.startswith("linux"):
    ctypes.CDLL(None).prctl(1, 15)  # PR_SET_PDEATHSIG, SIGTERM
if os.getppid() != int(sys.argv[1]):
    sys.exit(int(sys.argv[2]))
os.execv(sys.argv[3], sys.argv[3:])
"""


class TrialProcess:
    """A running trial, made by `start_trial`; after its end `record_end` has to be called."""

    def __init__(
        self, trial: Trial, workdir: Path, record: Record, process: subprocess.Popen, lock: int
    ) -> None:
        """Take over the process and the file descriptor that holds the lock."""
        self.trial, self.workdir, self._record = trial, workdir, record
        self._process, self._lock = process, lock

    def poll(self) -> int | None:
        """Return the exit status, None while the trial runs."""
        return self._process.poll()

    def wait(self) -> int:
        """Wait for the end and return the exit status."""
        return self._process.wait()

    def stop(self) -> None:
        """Ask the trial to save its state and end."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the trial, without a last checkpoint."""
        self._process.kill()

    def record_end(self, was_asked: bool) -> Record:
        """Record how the trial ended, and unlock its folder.

        Args:
          was_asked: whether the trial was asked to stop: ending early is then no failure.
        """
        code = self._process.returncode
        # Interrupted, not failed: the same command resumes.
        goes_on = code == LOST or (
            was_asked and code in (STOPPED, -signal.SIGTERM, -signal.SIGKILL)
        )
        failed = bool(code) and not goes_on
        state: State = "failed" if failed else "pending" if goes_on else "finished"
        record = dataclasses.replace(
            self._record,
            state=state,
            exit_status=code,
            failures=self._record.failures + failed,
            ended=now(),
        )
        write_record(self.workdir, record)
        # After the record: who takes the lock next reads that.
        os.close(self._lock)
        return record


def start_trial(
    sweep: Sweep,
    trial: Trial,
    root: Path,
    *,
    name: str = "",
    environment: Mapping[str, str] | None = None,
    more: Sequence[str] = (),
    wait: bool = False,
) -> TrialProcess | None:
    """Start or resume a trial; return None if it is finished or its folder is in use.

    Args:
      sweep: the sweep.
      trial: one of its trials.
      root: the sweep's folder.
      name: of the folder for commands, where it is a copy of one on a bucket.
      environment: environment variables besides those of this process.
      more: flags for this start only.
      wait: wait for a process that uses the folder instead of returning None.
    """
    workdir = root / trial.folder
    lock = _acquire(workdir / TRIAL_LOCK_FILE, wait)
    if lock is None:
        return None
    # Read under the lock: the process that held it before may have finished the trial.
    record = read_record(workdir)
    if record.state == "finished":
        os.close(lock)
        return None
    command = command_of(sweep, trial, name or root, more)
    record = dataclasses.replace(
        record,
        command=tuple(command),
        state="running",
        attempts=record.attempts + 1,
        started=now(),
        ended=None,
    )
    write_record(workdir, record)
    process = _spawn(command, workdir, {**os.environ, **(environment or {})}, record, lock)
    return TrialProcess(trial, workdir, record, process, lock)


def is_in_use(workdir: Path) -> bool:
    """Return whether a process uses a trial's folder."""
    lock = _acquire(workdir / TRIAL_LOCK_FILE, wait=False)
    if lock is not None:
        os.close(lock)
    return lock is None


def _spawn(
    command: Sequence[str], workdir: Path, environment: Mapping[str, str], record: Record, lock: int
) -> subprocess.Popen:
    bootstrap = [sys.executable, "-I", "-S", "-c", _BECOME, str(os.getpid()), str(STOPPED)]
    with (workdir / TRIAL_LOG_FILE).open("a") as log:
        said = f"{record.attempts}, {record.started}: {shlex.join(command)}"
        log.write(f"{ATTEMPT}{said}\n")
        log.flush()
        return subprocess.Popen(
            [*bootstrap, *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            # A lock belongs to the open file: inherited, it is held until both this process and
            # the trial have ended.
            pass_fds=(lock,),
            # A session of its own: Ctrl-C in a terminal reaches this process only, which then asks
            # the trials to stop.
            start_new_session=True,
        )


def _acquire(path: Path, wait: bool) -> int | None:
    """Return a descriptor that holds the lock, or None if another process holds it."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            logger.warning("%s: the file system has no locks: start this sweep only once", path)
        undo.pop_all()
    return lock
