"""A sweep of real trainings, disturbed and undisturbed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

from groupvit_jax.data.storage import objects
from groupvit_jax.runs import exit_codes
from groupvit_jax.runs.reading import find_runs, read_runs
from groupvit_jax.runs.sweep_files import read_record, read_sweep
from groupvit_jax.sweep import overview
from groupvit_jax.sweep.trial_process import is_in_use
from tests.data import object_store
from tests.launch.test_train import ONE_DEVICE, lines, small_config
from tests.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.slow
NUM_STEPS = 10


@pytest.fixture(scope="module")
def base(shards, tmp_path_factory):
    config = small_config(shards)
    config.train.num_steps = NUM_STEPS
    config.checkpoint.every_steps = 2
    path = tmp_path_factory.mktemp("base") / "base.json"
    path.write_text(json.dumps(config.to_dict()))
    return path


def write(folder, base, trials):
    path = folder / "mine.py"
    path.write_text(f"BASE = {str(base)!r}\ndef get_sweep():\n    return {trials!r}\n")
    return path


def launch(file, output, *arguments, **options):
    """Starts the command in a process of its own, its trials with one device each."""
    command = [sys.executable, "-m", "launch.sweep", f"--sweep={file}", f"--output={output}"]
    return subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"XLA_FLAGS": ONE_DEVICE},
        **options,
    )


def outcome(process):
    said, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, said


def wait_for(condition, process):
    def check():
        assert process.poll() is None, process.communicate()[0]

    wait_until(condition, check)


def records(root):
    sweep = read_sweep(root)
    if sweep is None:
        return {}
    written = [root / t.folder for t in sweep.trials if (root / t.folder / "trial.json").exists()]
    return {workdir: read_record(workdir) for workdir in written}


def finished(root):
    return [workdir for workdir, record in records(root).items() if record.state == "finished"]


def saved(workdir):
    """The steps that a trial has checkpoints of."""
    return [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]


def starts(workdir):
    return len((workdir / "starts.jsonl").read_text().splitlines())


def table_of(root):
    return overview.rows(read_sweep(root), root)


def test_a_sweep_that_is_killed_goes_on_and_ends_as_if_undisturbed(base, tmp_path):
    """Six trials, two at a time; no signal can be caught by the process that is killed."""
    file = write(tmp_path, base, [{"seed": seed} for seed in range(6)])
    disturbed, whole = tmp_path / "disturbed", tmp_path / "whole"
    process = launch(file, disturbed, "--jobs=2")

    def is_in_the_middle():
        running = [w for w, record in records(disturbed).items() if record.state == "running"]
        is_begun = any(saved(w) and max(saved(w)) < NUM_STEPS for w in running)
        return len(finished(disturbed)) >= 2 and is_begun

    wait_for(is_in_the_middle, process)
    process.kill()
    process.wait()
    done = finished(disturbed)
    assert 2 <= len(done) < 6
    before = {workdir: (workdir / "trial.json").read_bytes() for workdir in done}

    code, said = outcome(launch(file, disturbed, "--jobs=2"))
    assert code == 0, said
    assert "6 trials: 6 finished" in said
    for workdir in done:
        assert (workdir / "trial.json").read_bytes() == before[workdir]
        assert starts(workdir) == 1
        assert (workdir / "log.txt").read_text().count("--- attempt") == 1
    resumed = [w for w, record in records(disturbed).items() if record.attempts == 2]
    assert 1 <= len(resumed) <= 2
    assert any("resuming after step" in (w / "log.txt").read_text() for w in resumed)
    for workdir in records(disturbed):
        assert [line["step"] for line in lines(workdir)] == list(range(1, NUM_STEPS + 1))
        assert not is_in_use(workdir)

    code, said = outcome(launch(file, whole, "--jobs=2"))
    assert code == 0, said
    assert all(record.attempts == 1 for record in records(whole).values())
    assert table_of(disturbed) == table_of(whole)
    assert len({row["loss"] for row in table_of(whole)}) == 6


def records_at(url):
    found = {n: s.url for n, s in objects.find_objects(url).items() if n.endswith("/trial.json")}
    return [json.loads(text) for text in objects.read_objects([found[n] for n in sorted(found)])]


def test_a_sweep_on_a_bucket_that_is_killed_goes_on(base, tmp_path, monkeypatch):
    """Two trials: the second would never end."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = write(tmp_path, base, [{"seed": 1}, {"seed": 2, "train.num_steps": 100_000}])
    with object_store.serve("gs") as store:
        url, fault = f"{store.root}/sweeps/mine", store.first(1, "503", "PUT")
        store.fault = fault

        def saved_at(number):
            names = objects.find_objects(f"{url}/{number:03d}-seed={number + 1}-num_steps=100000")
            return max(
                (int(n.split("/")[1]) for n in names if n.endswith("MANIFEST.json")), default=0
            )

        process = launch(file, url)
        wait_for(lambda: saved_at(1), process)
        process.kill()
        process.wait()
        states = [(r["state"], r["attempts"]) for r in records_at(url)]
        assert states == [("finished", 1), ("running", 1)]
        # The trial saves and ends; then as on another machine.
        wait_until(lambda: not any("/run-" in name for name in objects.find_objects(url)))
        shutil.rmtree(tmp_path / "cache")
        before, process = saved_at(1), launch(file, url)
        wait_for(lambda: saved_at(1) > before, process)
        process.send_signal(signal.SIGTERM)
        code, said = outcome(process)
        assert code == exit_codes.STOPPED, said
        assert "2 trials: 1 finished, 1 pending" in said
        states = [(r["state"], r["attempts"]) for r in records_at(url)]
        assert states == [("finished", 1), ("pending", 2)]
        first, second = read_runs(find_runs([url]))
        assert (first.last_step, second.last_step > before) == (NUM_STEPS, True)
        assert f" {NUM_STEPS} " in said, "the table has the metrics of the bucket"
        [log] = objects.read_objects([f"{url}/001-seed=2-num_steps=100000/log.txt"])
        assert b"resuming after step" in log
        assert b"--- attempt 2" in log, "the first may have been killed before its log was uploaded"


def test_a_trial_that_crashes_is_said_and_tried_again(base, shards, tmp_path):
    broken = tmp_path / "broken.tar"
    shutil.copy(shards, broken)
    # The checks read the index of a shard, not its images.
    content = broken.read_bytes()
    broken.write_bytes(
        re.sub(rb"\xff\xd8\xff.{40}", lambda m: bytes(len(m[0])), content, flags=re.S)
    )
    trials = [{"seed": 1}, {"data.sources.pairs.pattern": str(broken)}]
    file = write(tmp_path, base, trials)
    code, said = outcome(launch(file, tmp_path / "out"))
    assert code == exit_codes.FAILED, said
    states = [record.state for record in records(tmp_path / "out").values()]
    assert states == ["finished", "failed"]
    assert "001-pattern=" in said
    assert "failed with exit status 2" in said
    assert re.search(r"^    error: 100 broken samples in a row", said, re.MULTILINE)
    assert "2 trials: 1 finished, 1 failed" in said
    shutil.copy(shards, broken)
    code, said = outcome(launch(file, tmp_path / "out", "--retry=1"))
    assert code == 0, said
    assert "is tried again" in said
    assert [record.attempts for record in records(tmp_path / "out").values()] == [1, 2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_sweep_has_saved_and_says_how_to_go_on(base, tmp_path, number):
    root = tmp_path / "out"
    trials = [{"seed": 1, "train.num_steps": 100_000}, {"seed": 2}]
    process = launch(write(tmp_path, base, trials), root)
    wait_for(lambda: any(map(saved, records(root))), process)
    process.send_signal(number)
    code, said = outcome(process)
    assert code == exit_codes.STOPPED, said
    assert "start the same command again to go on" in said
    first, second = records(root).items()
    assert (first[1].state, first[1].exit_status) == ("pending", exit_codes.STOPPED)
    assert second[1].attempts == 0
    assert "stop requested: ending after step" in (first[0] / "log.txt").read_text()


def test_a_job_of_a_cluster_makes_the_sweep_itself(base, tmp_path):
    """As the pods of Kubernetes do: nothing is in the folder before."""
    file = write(tmp_path, base, [{"seed": 1}, {"seed": 2}])
    code, said = outcome(launch(file, tmp_path / "out", "--trial=1"))
    assert code == 0, said
    assert [r.state for r in records(tmp_path / "out").values()] == ["pending", "finished"]
    assert outcome(launch(file, tmp_path / "out", "--trial=1"))[1].strip().endswith("already")
    code, said = outcome(launch(file, tmp_path / "out", "--trial=2"))
    assert code == exit_codes.BAD_INPUT
    assert said.splitlines()[-1] == "error: --trial=2: expected 0 to 1"
