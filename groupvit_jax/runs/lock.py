"""The lock of a workdir, so that one run at a time writes there.

    WORKDIR/run-1.lock    {"host", "pid", "started", ..., "beat"}, rewritten every few seconds

Without flock, which object stores and many NFS mounts lack. Taking is the exclusive creation of a
file, in which one of two runs succeeds. A holder that has died is recognised on its own host by its
process, at once, and elsewhere by a heartbeat that has stopped. Its successor never overwrites its
lock: it creates the next number and then removes it. So a run that decides on what it saw long ago
can't harm one that has decided since.
"""

import contextlib
import datetime
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from groupvit_jax.runs.lock_files import lock_files

logger = logging.getLogger(__name__)

BEAT_SECONDS = 10
# Six beats: an NFS server that restarts is silent for some tens of seconds.
DEAD_AFTER_SECONDS = 60
_POLL_SECONDS = 1


class LockLostError(RuntimeError):
    """Raised when the workdir is no longer this run's."""


class RunLock:
    """Context in which no other run writes to the workdir."""

    def __init__(
        self,
        workdir: Path | str,
        machine: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
        flag: str = "--workdir",
    ) -> None:
        """Take the folder.

        Args:
          workdir: the run's folder, or the URL of one on a bucket.
          machine: what tells processes of this machine from others'; found by default.
          sleep: waits so many seconds.
          flag: the flag that names the folder, for messages.
        """
        self._workdir, self._sleep, self._flag = workdir, sleep, flag
        self._files = lock_files(workdir)
        self._name = "run-0.lock"
        self._holder = dict(
            host=socket.gethostname(),
            pid=os.getpid(),
            started=datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
            machine=machine or _machine(),
            process_start=_process_start(os.getpid()),
            id=uuid.uuid4().hex,
            beat="",
        )
        self._beats = 0
        self._is_lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat_until_ended, daemon=True)

    def __enter__(self) -> "RunLock":
        """Take the lock; a heartbeat of another host is waited for up to `DEAD_AFTER_SECONDS`.

        Raises:
          ValueError: another run holds it.
        """
        while not self._try_to_take():
            pass
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release the lock."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # of a folder that is gone, as the run will have said
            if not self._is_lost:
                self._files.remove(self._name)

    def check(self) -> None:
        """Raise LockLostError if the folder was removed or another run has taken it over."""
        if self._is_lost:
            raise LockLostError(
                f"{self._flag}={self._workdir}: {self._name} is no longer this run's: the folder "
                "was removed, or another run has taken it over after "
                f"{DEAD_AFTER_SECONDS} s without a heartbeat"
            )

    def beat(self) -> None:
        """Show that this process lives, and see whether the lock is still its own."""
        if self._files.read(self._name).get("id") != self._holder["id"]:
            self._is_lost = True
            return
        self._beats += 1
        self._files.rewrite(self._name, self._content())

    def _beat_until_ended(self) -> None:
        while not self._is_lost and not self._ended.wait(BEAT_SECONDS):
            try:
                self.beat()
            except OSError as error:  # what the run writes next will fail too, and say so
                reason = error.strerror or error
                logger.warning("%s: no heartbeat written (%s)", self._name, reason)

    def _content(self) -> str:
        # Always of the same length, so that a reader never sees half of it.
        return json.dumps(self._holder | {"beat": f"{self._beats:09d}"})

    def _try_to_take(self) -> bool:
        """Return whether the lock is taken; if not, something has changed: look again."""
        dead = {name: self._files.read(name) for name in self._files.names()}
        for name, holder in dead.items():
            self._check_dead(name, holder)
        # Behind every number there is: of two runs that see the same locks, one can create it.
        taken = f"run-{max(map(_number, dead), default=0) + 1}.lock"
        if not self._files.create(taken, self._content()):
            return False
        others = {
            name: self._files.read(name).get("id") for name in self._files.names() if name != taken
        }
        if any(name not in dead or dead[name].get("id") != id for name, id in others.items()):
            self._files.remove(taken)  # another run has decided while this one did
            return False
        for left in others:
            self._files.remove(left)
            logger.warning("%s: removed, the run that held it has died", left)
        self._name = taken
        return True

    def _check_dead(self, name: str, holder: dict[str, Any]) -> None:
        """Return once the holder is known to be dead or gone; raise ValueError if it lives."""
        if holder.get("machine") == self._holder["machine"]:
            # Its start, too: numbers of processes are used again.
            if _process_start(holder["pid"]) == holder["process_start"]:
                raise ValueError(self._refusal(name, holder))
            return
        logger.warning("%s: waiting %d s for a heartbeat", name, DEAD_AFTER_SECONDS)
        # Seen to change, not compared with the time: the clocks of two hosts differ.
        for _ in range(DEAD_AFTER_SECONDS // _POLL_SECONDS):
            self._sleep(_POLL_SECONDS)
            seen = self._files.read(name)
            if not seen and name not in self._files.names():
                return
            if seen != holder:
                raise ValueError(self._refusal(name, seen))

    def _refusal(self, name: str, holder: dict[str, Any]) -> str:
        return (
            f"{self._flag}={self._workdir}: in use by process {holder.get('pid')} on "
            f"{holder.get('host')} since {holder.get('started')} ({name}), expected a folder "
            f"that no run uses; wait for its end, stop it or use another {self._flag}"
        )


def _number(name: str) -> int:
    number = name.removeprefix("run-").removesuffix(".lock")
    return int(number) if number.isdecimal() else 0


def _machine() -> str:
    """Return what processes share that see each other: a boot and a namespace of process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def _process_start(pid: int) -> str:
    """Return the start of a living process, in a form that only compares; "" for a dead one."""
    if not Path("/proc/self/stat").exists():
        # Not Linux: a process of the same number is taken for it.
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except PermissionError:
            return "unknown"  # it lives, and belongs to another user
        return "unknown"
    try:
        # After the name, which may hold blanks and brackets; a zombie no longer writes.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    # Field 22 of the file: clock ticks from the boot to the start. `fields` begins at field 4.
    return "" if state in "ZX" else fields[18]
