import os
import signal
import subprocess
import sys
import threading

import pytest

from groupvit_jax.runs import exit_codes
from groupvit_jax.runs.metrics_file import read_metrics
from groupvit_jax.sweep import overview, trial_process
from groupvit_jax.sweep.folder import log_tail
from groupvit_jax.sweep.local import LocalRunner, divide
from tests.sweep import fake
from tests.waiting import wait_until


@pytest.fixture(autouse=True)
def fake_training(monkeypatch):
    monkeypatch.setattr(trial_process, "command_of", fake.command_of)


def run(sweep, root, jobs=2, retry=0, update=lambda: None):
    said = []
    runner = LocalRunner(sweep, root, [{}] * jobs, retry=retry, say=said.append)
    runner.run(update)
    return runner, said


def test_all_trials_run_no_more_than_asked_at_a_time(tmp_path):
    sweep = fake.make_sweep(tmp_path, [(5, 0)] * 5)
    at_once = []
    run(sweep, tmp_path, update=lambda: at_once.append(fake.states(sweep, tmp_path)))
    assert max(states.count("running") for states in at_once) == 2
    assert fake.starts(sweep, tmp_path) == [1] * 5
    for record in fake.records(sweep, tmp_path):
        assert (record.state, record.exit_status, record.attempts) == ("finished", 0, 1)
        assert record.started <= record.ended


def test_finished_trials_are_left_alone(tmp_path):
    sweep = fake.make_sweep(tmp_path, [(2, 0)] * 3)
    run(sweep, tmp_path)
    _, said = run(sweep, tmp_path)
    assert said == []
    assert fake.starts(sweep, tmp_path) == [1] * 3


def test_a_trial_that_crashes_is_reported_and_the_others_go_on(tmp_path):
    sweep = fake.make_sweep(tmp_path, [(2, 0), (2, 3), (2, 0)])
    _, said = run(sweep, tmp_path, jobs=1)
    assert fake.states(sweep, tmp_path) == ["finished", "failed", "finished"]
    name = sweep.trials[1].folder
    failed = said.index(f"{name}: failed with exit status 3, 1 times so far")
    assert f"    the last words of {name}" in said[failed:]
    _, said = run(sweep, tmp_path)
    assert said[0].endswith("not tried again with --retry=0")
    assert fake.starts(sweep, tmp_path) == [1, 1, 1]


def test_a_trial_that_failed_is_tried_again_as_often_as_asked(tmp_path):
    sweep = fake.make_sweep(tmp_path, [(2, 3)])
    run(sweep, tmp_path, retry=2)
    assert fake.starts(sweep, tmp_path) == [3]
    (tmp_path / sweep.trials[0].folder / "mended").touch()
    _, said = run(sweep, tmp_path, retry=3)
    assert f"    the last words of {sweep.trials[0].folder}" in said
    (record,) = fake.records(sweep, tmp_path)
    assert (record.state, record.attempts, record.failures) == ("finished", 4, 3)


def test_a_stopped_sweep_lets_trials_save_and_goes_on(tmp_path):
    sweep = fake.make_sweep(tmp_path, [(40, 0)] * 3)
    runner = LocalRunner(sweep, tmp_path, [{}] * 2, retry=0, say=lambda line: None)

    def stop_soon():
        if sum(fake.starts(sweep, tmp_path)) == 2 and not runner.was_stopped:
            runner.stop()

    runner.run(stop_soon)
    assert fake.states(sweep, tmp_path) == ["pending"] * 3
    assert [record.exit_status for record in fake.records(sweep, tmp_path)] == [143, 143, None]
    run(sweep, tmp_path)
    assert fake.states(sweep, tmp_path) == ["finished"] * 3
    assert fake.starts(sweep, tmp_path) == [2, 2, 1]
    assert [row["step"] for row in overview.rows(sweep, tmp_path)] == [40] * 3


def test_the_second_stop_ends_trials_at_once(tmp_path):
    sweep = fake.make_sweep(tmp_path, [(5000, 0)])
    runner = LocalRunner(sweep, tmp_path, [{}], retry=0, say=lambda line: None)

    def stop_twice():
        if fake.starts(sweep, tmp_path) == [1] and not runner.was_stopped:
            runner.stop()
            runner.stop()

    runner.run(stop_twice)
    (record,) = fake.records(sweep, tmp_path)
    assert (record.state, record.exit_status) == ("pending", -signal.SIGKILL)


KILLED = """
import sys
from pathlib import Path
from groupvit_jax.runs.sweep_files import read_sweep
from groupvit_jax.sweep import trial_process
from groupvit_jax.sweep.local import LocalRunner
from tests.sweep import fake
trial_process.command_of = fake.command_of
root = Path(sys.argv[1])
LocalRunner(read_sweep(root), root, [{}] * 3, retry=0, say=print).run()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no signal at a parent's death")
def test_trials_of_a_killed_sweep_save_and_end_before_they_run_again(tmp_path):
    sweep = fake.make_sweep(tmp_path, [(2, 0), (200, 0), (200, 0)])
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)])
    wait_until(lambda: fake.starts(sweep, tmp_path) == [1, 1, 1])
    wait_until(lambda: fake.states(sweep, tmp_path)[0] == "finished")
    process.kill()
    process.wait()
    assert fake.states(sweep, tmp_path) == ["finished", "running", "running"]
    _, said = run(sweep, tmp_path)  # while they are still saving
    assert sum("waiting for another process" in line for line in said) == 2
    assert fake.states(sweep, tmp_path) == ["finished"] * 3
    assert fake.starts(sweep, tmp_path) == [1, 2, 2]
    for trial in sweep.trials[1:]:
        first, second = (tmp_path / trial.folder / "starts").read_text().splitlines()
        assert first == "after step 0"
        assert 0 < int(second.split()[-1]) < 200  # the killed sweep's trial has not gone on
        metrics = read_metrics(tmp_path / trial.folder)
        assert [line["step"] for line in metrics] == list(range(1, 201))


def test_a_folder_is_one_process_at_a_time_and_a_second_start_waits(tmp_path):
    sweep = fake.make_sweep(tmp_path, [(10, 0)])
    trial = sweep.trials[0]
    first = trial_process.start_trial(sweep, trial, tmp_path)
    assert trial_process.start_trial(sweep, trial, tmp_path) is None
    assert trial_process.is_in_use(tmp_path / trial.folder)
    second = []
    waiting = threading.Thread(
        target=lambda: second.append(trial_process.start_trial(sweep, trial, tmp_path, wait=True))
    )
    waiting.start()
    first.wait()
    first.record_end(was_asked=False)
    waiting.join()
    assert second == [None]  # finished by the first
    assert fake.starts(sweep, tmp_path) == [1]
    assert not trial_process.is_in_use(tmp_path / trial.folder)


def test_a_lost_process_is_no_failure(tmp_path):
    sweep = fake.make_sweep(tmp_path, [(1, exit_codes.LOST)])
    run(sweep, tmp_path)
    (record,) = fake.records(sweep, tmp_path)
    assert (record.state, record.failures) == ("pending", 0)


def test_trials_get_the_variables_of_their_share(tmp_path, monkeypatch):
    sweep = fake.make_sweep(tmp_path, [(1, 0)])
    monkeypatch.setattr(
        trial_process,
        "command_of",
        lambda *_: [sys.executable, "-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"],
    )
    LocalRunner(sweep, tmp_path, divide("gpu", 2, 2), retry=0, say=lambda line: None).run()
    assert log_tail(tmp_path / sweep.trials[0].folder)[-1] in "01"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_accelerators_are_divided():
    threads = str(max(os.cpu_count() // 2, 1))
    assert divide("cpu", 8, 2) == [{"PJRT_NPROC": threads}] * 2
    assert divide("cpu", 8, 1) == [{}]
    assert divide("gpu", 8, 2) == [
        {"CUDA_VISIBLE_DEVICES": "0,1,2,3"},
        {"CUDA_VISIBLE_DEVICES": "4,5,6,7"},
    ]
    assert divide("gpu", 2, 2, "GPU-b,GPU-a")[1] == {"CUDA_VISIBLE_DEVICES": "GPU-a"}
    assert divide("tpu", 4, 4)[3] == {
        "TPU_VISIBLE_DEVICES": "3",
        "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
        "TPU_PROCESS_BOUNDS": "1,1,1",
    }
    assert divide("tpu", 4, 1) == [{}]
    with pytest.raises(ValueError, match="--jobs=3: 8 devices found, expected a divisor"):
        divide("gpu", 8, 3)
