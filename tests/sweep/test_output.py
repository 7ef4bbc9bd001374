"""A sweep's folder on a bucket."""

import dataclasses
from urllib.parse import quote

import pytest

from groupvit_jax.data.storage import objects
from groupvit_jax.data.storage.retries import StorageError
from groupvit_jax.runs.lock import LockLostError
from groupvit_jax.runs.sweep_files import read_record, read_sweep, write_record
from groupvit_jax.sweep import overview
from groupvit_jax.sweep.output import BucketOutput, open_output
from tests.data import object_store, quick_retries
from tests.sweep import fake


@pytest.fixture(scope="module")
def served():
    with object_store.serve() as store:
        yield store


@pytest.fixture
def store(served, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    served.clear()
    with quick_retries.patched():
        yield served


@pytest.fixture
def url(store):
    return f"{store.root}/sweeps/mine"


def change(root, trial, **fields):
    workdir = root / trial.folder
    write_record(workdir, dataclasses.replace(read_record(workdir), **fields))


def test_what_one_process_has_written_the_next_one_finds(url, tmp_path):
    first = BucketOutput(tmp_path / "first", url)
    sweep = fake.make_sweep(first.folder, [(1, 0), (2, 0)])
    (first.folder / sweep.trials[0].folder / "log.txt").write_text("said\n")
    first.upload()
    assert not any(name.endswith("log.txt") for name in objects.find_objects(url))
    change(first.folder, sweep.trials[0], state="finished")
    first.finish()
    metrics = f"{url}/{sweep.trials[0].folder}/metrics.jsonl"  # of the trial's own process
    objects.write_object(metrics, b'{"step": 1, "loss": 0.5}\n')

    second = BucketOutput(tmp_path / "second", url)
    assert read_sweep(second.folder) == sweep
    assert fake.states(sweep, second.folder) == ["finished", "pending"]
    assert [row["loss"] for row in overview.rows(sweep, second.folder)] == [0.5, None]
    assert (second.folder / sweep.trials[0].folder / "log.txt").read_text() == "said\n"


def test_only_what_has_changed_is_uploaded(url, store, tmp_path):
    output = BucketOutput(tmp_path, url)
    sweep = fake.make_sweep(tmp_path, [(1, 0), (1, 0)])
    output.upload()
    change(tmp_path, sweep.trials[1], state="running")
    store.requests.clear()
    output.upload()
    output.upload()
    [(method, path)] = store.requests
    assert (method, path.endswith(f"{quote(sweep.trials[1].folder)}/trial.json")) == ("PUT", True)


def test_a_job_of_one_trial_leaves_the_records_of_others(url, tmp_path):
    sweep = fake.make_sweep(tmp_path / "a", [(1, 0), (1, 0)])
    fake.make_sweep(tmp_path / "b", [(1, 0), (1, 0)])
    for folder, trial in zip(("a", "b"), sweep.trials, strict=True):
        output = BucketOutput(tmp_path / "none", url)
        output.folder = tmp_path / folder
        change(output.folder, trial, state="running")
        output.upload(trial=trial.folder)
    assert fake.states(sweep, BucketOutput(tmp_path / "c", url).folder) == ["running"] * 2


def test_what_a_killed_process_has_left_is_not_taken_for_the_buckets(url, tmp_path):
    output = BucketOutput(tmp_path, url)
    sweep = fake.make_sweep(tmp_path, [(1, 0)])
    output.upload()
    workdir = tmp_path / sweep.trials[0].folder
    change(tmp_path, sweep.trials[0], state="finished")  # and never uploaded
    (workdir / ".lock").touch()
    (workdir / "checkpoints" / "3").mkdir(parents=True)
    BucketOutput(tmp_path, url)
    assert fake.states(sweep, tmp_path) == ["pending"]
    assert sorted(path.name for path in workdir.iterdir()) == [".lock", "trial.json"]


def test_a_sweep_runs_once_at_a_time(url):
    with open_output(url, runs_here=True) as output:
        with pytest.raises(ValueError, match=f"--output={url}: in use by process .* another --out"):
            open_output(f"{url}/", runs_here=True).__enter__()
        with open_output(url, runs_here=False) as other:  # as for --dry_run
            assert other.folder != output.folder


def test_nothing_is_uploaded_once_the_sweep_is_lost(url, tmp_path):
    def lost():
        raise LockLostError("lost")

    output = BucketOutput(tmp_path, url, lost)
    fake.make_sweep(tmp_path, [(1, 0)])
    with pytest.raises(LockLostError):
        output.upload()
    assert objects.find_objects(url) == {}


def test_a_bucket_that_refuses_is_one_line(url, store, tmp_path):
    store.fault = lambda method, path: "403" if method == "PUT" else None
    output = BucketOutput(tmp_path, url)
    fake.make_sweep(tmp_path, [(1, 0)])
    with pytest.raises(StorageError, match=f"{url}/.*403 said"):
        output.upload()
    store.fault = lambda method, path: "403"
    with pytest.raises(ValueError, match=f"--output={url}: can't be read"):
        BucketOutput(tmp_path, url)
