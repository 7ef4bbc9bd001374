import os
import signal
from pathlib import Path

import pytest

from groupvit_jax.prepare.runners import WorkerDiedError, beam_runner, local_runner


def touch(path: str) -> str:
    Path(path).write_text(str(os.getpid()))
    return path


def fail(path: str) -> None:
    raise ValueError(f"{path} is bad")


def die(path: str) -> None:
    del path
    os.kill(os.getpid(), signal.SIGKILL)


def test_one_worker_is_this_process(tmp_path):
    local_runner(1)(touch, [str(tmp_path / name) for name in "abc"])
    assert {path.read_text() for path in tmp_path.iterdir()} == {str(os.getpid())}


def test_every_task_is_done_once_by_other_processes(tmp_path):
    local_runner(2)(touch, [str(tmp_path / name) for name in "abcdef"])
    assert {path.name for path in tmp_path.iterdir()} == set("abcdef")
    assert str(os.getpid()) not in {path.read_text() for path in tmp_path.iterdir()}


def test_errors_reach_the_caller():
    with pytest.raises(ValueError, match="a is bad"):
        local_runner(2)(fail, ["a", "a"])
    with pytest.raises(WorkerDiedError, match=r"killed.*--num_workers"):
        local_runner(2)(die, ["a", "b"])


def test_no_tasks_are_no_work():
    local_runner(2)(fail, [])


def test_beam_does_every_task(tmp_path):
    pytest.importorskip("apache_beam")
    beam_runner("DirectRunner", [])(touch, [str(tmp_path / name) for name in "abc"])
    assert {path.name for path in tmp_path.iterdir()} == set("abc")
