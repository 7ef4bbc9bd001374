"""Running trials on this machine, some at a time."""

import collections
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from groupvit_jax.runs.sweep_files import Record, Sweep, Trial, read_record
from groupvit_jax.sweep import trial_process
from groupvit_jax.sweep.folder import log_tail
from groupvit_jax.sweep.trial_process import TrialProcess

POLL_SECONDS = 0.2

Environment = Mapping[str, str]


def divide(platform: str, count: int, jobs: int, visible: str = "") -> list[Environment]:
    """Return, for each job, the environment variables that give it its share of accelerators.

    Args:
      platform: JAX's name of the platform; on "cpu" each job gets threads for its share of cores.
      count: number of accelerators in this machine.
      jobs: trials at a time.
      visible: value of CUDA_VISIBLE_DEVICES; empty if all are visible.

    Raises:
      ValueError: the accelerators can't be divided by the jobs.
    """
    if platform == "cpu":
        # As many threads as cores in each would only wait for one another.
        threads = max((os.cpu_count() or 1) // jobs, 1)
        return [{} if jobs == 1 else {"PJRT_NPROC": str(threads)} for _ in range(jobs)]
    if count % jobs:
        raise ValueError(f"--jobs={jobs}: {count} devices found, expected a divisor of that")
    share = count // jobs
    names = visible.split(",") if visible else [str(i) for i in range(count)]
    parts = [",".join(names[i * share : (i + 1) * share]) for i in range(jobs)]
    if platform != "tpu":
        return [{"CUDA_VISIBLE_DEVICES": part} for part in parts]
    if share not in _TPU_BOUNDS:
        raise ValueError(f"--jobs={jobs}: {share} TPU chips a job found, expected 1, 2, 4 or 8")
    alone = {"TPU_CHIPS_PER_PROCESS_BOUNDS": _TPU_BOUNDS[share], "TPU_PROCESS_BOUNDS": "1,1,1"}
    return [{} if jobs == 1 else {"TPU_VISIBLE_DEVICES": part, **alone} for part in parts]


# Shape of a process's chips for libtpu, by their number: neighbours on the machine's mesh.
_TPU_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}


class LocalRunner:
    """Runs the trials that are not finished; `stop` is safe in a signal handler."""

    def __init__(
        self,
        sweep: Sweep,
        root: Path,
        slots: Sequence[Environment],
        *,
        retry: int,
        say: Callable[[str], None],
        more: Sequence[str] = (),
        name: str = "",
    ) -> None:
        """Queue the trials that have to run.

        Args:
          sweep: the sweep.
          root: its folder.
          slots: environment variables of each trial that runs at a time.
          retry: how often a failed trial is tried again.
          say: shows a line.
          more: flags of every trial in this start.
          name: of the folder for commands, where it is a copy of one on a bucket.
        """
        self._sweep, self._root, self._retry, self._say = sweep, root, retry, say
        self._more, self._name = more, name
        self._free = list(slots)
        self._running: dict[TrialProcess, Environment] = {}
        self._in_use: set[int] = set()
        # A signal handler only counts: it may interrupt the loop that changes `_running`.
        self._stops = self._stops_done = 0
        self._waiting = collections.deque(filter(self._is_due, sweep.trials))

    def run(self, update: Callable[[], None] = lambda: None) -> None:
        """Run until no trial is left, or after `stop` until all have saved their state.

        Args:
          update: called several times a second.
        """
        while self._running or (self._waiting and not self._stops):
            self._collect()
            self._pass_on_stops()
            if not self._stops:
                self._fill()
            update()
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """Ask the trials to save their state and end; a second call kills them."""
        self._stops += 1

    @property
    def was_stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stops > 0

    def _is_due(self, trial: Trial) -> bool:
        workdir = self._root / trial.folder
        record = read_record(workdir)
        if record.state != "failed":
            # Also "running", which a machine that died leaves.
            return record.state != "finished"
        is_due = record.failures <= self._retry
        what = "is tried again" if is_due else f"not tried again with --retry={self._retry}"
        self._say_failed(workdir, record, what)
        return is_due

    def _fill(self) -> None:
        # Once round the queue: a trial that is put back has to wait for the next call.
        for _ in range(len(self._waiting)):
            if not self._free:
                return
            trial = self._waiting.popleft()
            process = trial_process.start_trial(
                self._sweep,
                trial,
                self._root,
                name=self._name,
                environment=self._free[-1],
                more=self._more,
            )
            if process is None:
                self._put_back(trial)
                continue
            # Only now: a trial that was put back takes no slot.
            self._running[process] = self._free.pop()
            self._say(f"{trial.folder}: started")

    def _put_back(self, trial: Trial) -> None:
        """Queue a trial again whose folder another process uses, unless that has finished it."""
        if read_record(self._root / trial.folder).state == "finished":
            return
        if trial.id not in self._in_use:
            self._say(f"{trial.folder}: waiting for another process that still works in the folder")
            self._in_use.add(trial.id)
        self._waiting.append(trial)

    def _pass_on_stops(self) -> None:
        for _ in range(self._stops - self._stops_done):
            self._stops_done += 1
            for process in self._running:
                process.stop() if self._stops_done == 1 else process.kill()

    def _collect(self) -> None:
        for process in [process for process in self._running if process.poll() is not None]:
            # The slot, and with it the accelerators, is free only now that the process has ended.
            self._free.append(self._running.pop(process))
            record = process.record_end(was_asked=self.was_stopped)
            if record.state != "failed":
                self._say(f"{process.trial.folder}: {_END[record.state]}")
                continue
            again = record.failures <= self._retry and not self.was_stopped
            self._say_failed(process.workdir, record, "is tried again" if again else "")
            if again:
                self._waiting.append(process.trial)

    def _say_failed(self, workdir: Path, record: Record, more: str) -> None:
        what = f"failed with exit status {record.exit_status}, {record.failures} times so far"
        self._say(f"{workdir.name}: {what}{'; ' if more else ''}{more}")
        for line in log_tail(workdir):
            self._say(f"    {line}")


_END = {"finished": "finished", "pending": "stopped, its state is saved"}
