import json
import os
import subprocess
import sys
import threading

import pytest

from groupvit_jax.runs import lock
from groupvit_jax.runs.lock import LockLostError, RunLock

HOLD = """
import sys
from pathlib import Path
from groupvit_jax.runs.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold_in_another_process(workdir):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(workdir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


def locks(workdir):
    return sorted(path.name for path in workdir.iterdir())


def no_sleep(seconds):
    """A wait in which nothing happens."""


def never(seconds):
    raise AssertionError("nothing to wait for")


def foreign(workdir, machine="another", sleep=no_sleep):
    """A lock as a process of another machine would take it."""
    return RunLock(workdir, machine=machine, sleep=sleep)


def test_the_lock_is_there_as_long_as_the_run(tmp_path):
    with RunLock(tmp_path, sleep=never) as held:
        assert locks(tmp_path) == ["run-1.lock"]
        held.check()
    assert locks(tmp_path) == []


def test_a_second_run_is_refused_with_the_first_ones_process(tmp_path):
    with RunLock(tmp_path):
        message = rf"in use by process {os.getpid()} on \S+ since 20\d\d-.* \(run-1\.lock\)"
        with pytest.raises(ValueError, match=message):
            RunLock(tmp_path, sleep=never).__enter__()
        assert locks(tmp_path) == ["run-1.lock"]


def test_a_killed_process_of_this_host_is_succeeded_at_once(tmp_path, caplog):
    process = hold_in_another_process(tmp_path)
    with pytest.raises(ValueError, match=f"process {process.pid}"):
        RunLock(tmp_path, sleep=never).__enter__()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # and leave it a zombie
    with RunLock(tmp_path, sleep=never):
        assert locks(tmp_path) == ["run-2.lock"]
    process.wait()
    assert "run-1.lock: removed, the run that held it has died" in caplog.text


def test_another_process_of_the_same_number_is_not_the_holder(tmp_path):
    with RunLock(tmp_path):
        content = json.loads((tmp_path / "run-1.lock").read_text())
    content["process_start"] = "1"
    (tmp_path / "run-1.lock").write_text(json.dumps(content))
    with RunLock(tmp_path, sleep=never):
        assert locks(tmp_path) == ["run-2.lock"]


def test_another_host_lives_as_long_as_its_heart_beats(tmp_path):
    with foreign(tmp_path) as there:
        with pytest.raises(ValueError, match="in use by process"):
            RunLock(tmp_path, sleep=lambda seconds: there.beat()).__enter__()
        there.check()


def test_another_host_is_succeeded_when_its_heartbeat_has_ended(tmp_path):
    waited = []
    with foreign(tmp_path) as there, RunLock(tmp_path, sleep=waited.append):
        assert sum(waited) == lock.DEAD_AFTER_SECONDS
        assert locks(tmp_path) == ["run-2.lock"]
        there.beat()  # it was only slow, and notices
        with pytest.raises(LockLostError, match="another run has taken it over"):
            there.check()
        assert locks(tmp_path) == ["run-2.lock"]
    assert locks(tmp_path) == []


def test_a_released_lock_is_not_waited_for(tmp_path):
    there = foreign(tmp_path).__enter__()
    waited = []

    def sleep(seconds):
        waited.append(seconds)
        there.__exit__(None, None, None)

    with RunLock(tmp_path, sleep=sleep):
        assert len(waited) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_lock_that_says_nothing_is_waited_for(tmp_path, content):
    (tmp_path / "run-1.lock").write_text(content)
    waited = []
    with RunLock(tmp_path, sleep=waited.append):
        assert sum(waited) == lock.DEAD_AFTER_SECONDS


def test_who_decides_on_what_has_changed_since_gives_way(tmp_path):
    """Between its last look and its own lock another run has succeeded the dead one."""
    dead = foreign(tmp_path).__enter__()
    winner = foreign(tmp_path, machine="third")
    calls = []

    def sleep(seconds):
        calls.append(seconds)
        if len(calls) == lock.DEAD_AFTER_SECONDS:
            winner.__enter__()
        elif len(calls) > lock.DEAD_AFTER_SECONDS:
            winner.beat()

    with pytest.raises(ValueError, match=r"in use by .*run-2\.lock"):
        RunLock(tmp_path, sleep=sleep).__enter__()
    winner.check()
    assert locks(tmp_path) == ["run-2.lock"]
    winner.__exit__(None, None, None)
    dead.beat()


@pytest.mark.parametrize("dead_one", [False, True])
def test_of_runs_that_start_at_once_one_wins(tmp_path, dead_one):
    if dead_one:
        (tmp_path / "run-4.lock").write_text("")
    barrier, outcomes = threading.Barrier(8), []

    def take():
        barrier.wait()
        try:
            outcomes.append(RunLock(tmp_path, sleep=no_sleep).__enter__())
        except ValueError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = [outcome for outcome in outcomes if isinstance(outcome, RunLock)]
    assert len(held) == 1
    assert len(locks(tmp_path)) == 1
    held[0].check()
    held[0].__exit__(None, None, None)


def test_without_its_folder_the_lock_is_lost_and_nothing_is_made_anew(tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    with RunLock(workdir) as held:
        (workdir / "run-1.lock").unlink()
        workdir.rmdir()
        held.beat()
        with pytest.raises(LockLostError):
            held.check()
    assert not workdir.exists()
