"""Kills runs of `toy` at random moments, or fills their disk, and compares how they end.

python -m tests.train.kills --kills=100 --processes=2 --disk=/mnt/small

A disturbed run is started again until it is complete and then compared, bit for bit, with an
undisturbed one: parameters, optimizer, random key, data position and metrics. Exits with 1 at the
first difference. Every third disturbance is a full disk: where `--disk` names a file system that
may be filled (`mount -t tmpfs -o size=32m`), it is filled; elsewhere the processes get a limit of
the size of files (RLIMIT_FSIZE), which cuts off writes just as well and needs no root.
"""

import argparse
import collections
import contextlib
import fcntl
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import fsspec

from groupvit_jax.data.storage import objects
from groupvit_jax.runs.bucket.mirror import BucketWorkdir
from groupvit_jax.train.checkpointer import Checkpointer, CheckpointSettings
from tests.data import quick_retries
from tests.devices import xla_flags
from tests.train import toy
from tests.waiting import PATIENCE, wait_until

WIDTH = 1 << 15  # a state of 1.5 MB: saves take long enough to be hit
_FILLER = "filler"


# Forked from a process that has imported JAX and the rest, which takes longer than a run does.
SPAWN = multiprocessing.get_context("forkserver")
SPAWN.set_forkserver_preload(["tests.train.toy"])


def _work(log, began, arguments, options, environment):
    os.environ |= environment | {"XLA_FLAGS": xla_flags(1)}
    os.dup2(os.open(log, os.O_WRONLY), sys.stderr.fileno())
    fsspec.config.set_conf_env(fsspec.config.conf)
    is_bucket = objects.is_remote(str(arguments[0]))
    with quick_retries.patched() if is_bucket else contextlib.nullcontext():
        toy.main(*arguments, began=lambda: began.send(True), **options)


class Log:
    """What the processes say. A pipe: a limit of the size of files would cut off a file."""

    def __init__(self, path):
        os.mkfifo(path)
        self.path = path
        self._pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, 1 << 20)  # far more than a run says

    def read(self):
        """Returns what was said since the last call."""
        said = b""
        with contextlib.suppress(BlockingIOError):
            while True:
                said += os.read(self._pipe, 1 << 16)
        return said.decode(errors="replace")


class Run:
    """The processes of one start; options are those of `toy.main`."""

    def __init__(self, workdir, num_steps, processes, log, **options):
        self.workdir, self.log, self.processes, self._began = workdir, log, [], []
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        for rank in range(processes):
            began, child_began = SPAWN.Pipe(duplex=False)
            arguments = [workdir, num_steps, WIDTH, *([rank, port] if processes > 1 else [])]
            # As on hosts with disks of their own.
            cache = f"{os.environ.get('XDG_CACHE_HOME', log)}-{rank}"
            # Not that of the server from which the process is forked.
            environment = {**os.environ, "XDG_CACHE_HOME": cache}
            given = (log, child_began, arguments, options, environment)
            process = SPAWN.Process(target=_work, args=given)
            process.start()
            child_began.close()
            self.processes.append(process)
            self._began.append(began)

    def wait_until_training(self):
        for began in self._began:
            with contextlib.suppress(EOFError):  # it has ended
                began.recv()

    def ended(self):
        return any(process.exitcode is not None for process in self.processes)

    def wait(self):
        """Returns the exit codes; once one process has failed, the others are ended."""
        wait_until(self.ended)
        failed = any(process.exitcode for process in self.processes)
        for process in self.processes:
            if failed:
                process.kill()
            process.join(PATIENCE)
        return {process.exitcode for process in self.processes}

    def kill_one_after_another(self, rng):
        """Kills all, as a scheduler or a failing network does."""
        for process in rng.sample(self.processes, len(self.processes)):
            process.kill()
            if len(self.processes) > 1:
                time.sleep(rng.choice((0, rng.uniform(0, 0.3))))


def at_any_moment(run, rng):
    """Kills, the processes one after the other, while the run starts or trains."""
    if rng.random() < 0.75:
        run.wait_until_training()
    time.sleep(rng.uniform(0, 1.5))
    run.kill_one_after_another(rng)


def in_a_save(run, rng):
    """Kills while a step is under its temporary name."""
    run.wait_until_training()
    time.sleep(rng.uniform(0, 0.5))
    steps = run.workdir / "checkpoints"
    while not run.ended() and not list(steps.glob("*tmp*")):
        time.sleep(0.001)
    time.sleep(rng.choice((0, rng.uniform(0, 0.02))))
    run.kill_one_after_another(rng)


def full_disk(run, rng, disk=None):
    """Lets the run end by a disk without space, or with room for a part of a save only."""
    run.wait_until_training()
    time.sleep(rng.uniform(0, 1.0))
    left = rng.choice((0, rng.randrange(1000), rng.randrange(600_000)))
    if disk is None:
        for process in run.processes:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (left, left))
    else:
        with contextlib.suppress(OSError), (disk / _FILLER).open("wb", buffering=0) as filler:
            filler.truncate(0)
            while (free := shutil.disk_usage(disk).free) > left:
                filler.write(bytes(min(free - left, 1 << 20)))
    run.wait()
    if disk is not None:
        (disk / _FILLER).unlink()


DISTURBANCES = {"killed": at_any_moment, "killed in a save": in_a_save, "full disk": full_disk}


def state_of(workdir):
    """Returns the last state and its data position of a run, which may be on a bucket."""
    target = toy.abstract(toy.make_mesh(1, 1), toy.init_state(width=WIDTH))
    settings = CheckpointSettings(every_steps=1, keep_last=2)
    with contextlib.ExitStack() as stack:
        if objects.is_remote(str(workdir)):
            workdir = stack.enter_context(BucketWorkdir(str(workdir))).folder
        checkpointer = Checkpointer(workdir / "checkpoints", settings)
        stack.callback(checkpointer.close)
        return checkpointer.restore_latest(target)


def lines(workdir):
    """Returns the records of a run's metrics, which may be on a bucket."""
    [content] = objects.read_objects([f"{workdir}/metrics.jsonl"])
    return [json.loads(line) for line in content.decode().splitlines()]


def check_equal(disturbed, whole, num_steps):
    """Asserts that two complete runs have left the same."""
    (state, position), (other, other_position) = state_of(disturbed), state_of(whole)
    assert int(state.step) == num_steps
    toy.assert_same(state, other)
    assert position == other_position
    values = [
        [
            (line["step"], line["loss"], line["gradient_norm"])
            for line in lines(run)
            if "loss" in line
        ]
        for run in (disturbed, whole)
    ]
    assert values[0] == values[1]
    assert [step for step, *_ in values[0]] == [*range(5, num_steps + 1, 5)]


def disturb(folder, kills, processes, seed, num_steps=150, disk=None, url=""):
    """Returns how many starts ended in which way; runs are compared as they complete.

    With a URL, the disturbed run is on a bucket and killed at any moments only.
    """
    rng, ends, rounds = random.Random(seed), collections.Counter(), 0
    whole, log = folder / "whole", Log(folder / "log")
    assert Run(whole, num_steps, processes, log.path).wait() == {0}, log.read()
    names = ["killed"] if url else list(DISTURBANCES)
    while sum(ends[name] for name in names) < kills or rounds == 0:
        disturbed = f"{url}/{rounds}" if url else (disk or folder) / "run"
        while True:
            left = kills - sum(ends[name] for name in names)
            log.read()
            run = Run(disturbed, num_steps, processes, log.path)
            if left > 0:
                name = names[left % len(names)]
                more = {"disk": disk} if name == "full disk" else {}
                DISTURBANCES[name](run, rng, **more)
            codes = run.wait()
            if codes == {0}:
                break
            said = log.read()
            if left > 0 and name == "full disk":
                assert 1 in codes, f"{codes}: {said}"
                assert "WorkdirError" in said, said
            else:
                assert left > 0, f"{codes}: {said}"
                assert -signal.SIGKILL in codes, f"{codes}: {said}"
            ends[name] += 1
        check_equal(disturbed, whole, num_steps)
        rounds += 1
        if not url:
            shutil.rmtree(disturbed)
    return {**ends, "complete and equal": rounds}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--processes", type=int, default=1, choices=(1, 2))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--disk", type=Path, help="a small file system, which is filled")
    flags = parser.parse_args()
    os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        ends = disturb(Path(folder), flags.kills, flags.processes, flags.seed, disk=flags.disk)
        print(f"{flags.processes} processes: {ends}, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
