"""Runs whose workdir is on a bucket end as those in a folder."""

import json
import random
import threading
import time

import pytest

from groupvit_jax.data.storage import objects, retries
from groupvit_jax.runs import checkpoints
from groupvit_jax.runs.bucket.fetching import local_copy
from groupvit_jax.runs.bucket.mirror import BucketWorkdir
from groupvit_jax.runs.reading import find_runs, read_runs
from tests.data import object_store
from tests.train import kills, toy
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

URL = f"s3://{object_store.BUCKET}/runs/first"


@pytest.fixture(scope="module")
def served():
    with object_store.serve() as store:
        yield store


@pytest.fixture
def store(served, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(retries, "RETRY", retries.Retry(first_seconds=0.01))
    served.clear()
    return served


def steps_on(store):
    names = objects.find_objects(f"{URL}/checkpoints")
    return sorted({name.split("/")[0] for name in names})


def has_step(url):
    return any(name.endswith("/MANIFEST.json") for name in objects.find_objects(url))


def state_of(workdir, width=8):
    target = toy.abstract(toy.make_mesh(1, 1), toy.init_state(width=width))
    with BucketWorkdir(workdir) as local:
        return toy.last_state(local.folder, target)


def lines(workdir):
    return [(line["step"], line["loss"]) for line in kills.lines(workdir)]


def fails_now_and_then(seed):
    rng, lock = random.Random(seed), threading.Lock()

    def fault(method, path):
        with lock:
            return rng.choice(["503", "cut", "refuse"]) if rng.random() < 0.15 else None

    return fault


def test_a_run_on_a_bucket_resumes_and_leaves_what_one_in_a_folder_does(store, tmp_path):
    store.fault = fails_now_and_then(0)
    toy.run(URL, 7, save_every=3, log_every=2)
    assert steps_on(store) == ["6", "7"], "the last two"
    assert not list((tmp_path / "cache").rglob("*.*")), "the cache is removed"
    toy.run(URL, 14, save_every=3, log_every=2)
    store.fault = lambda method, path: None
    toy.run(tmp_path / "whole", 14, save_every=3, log_every=2)
    assert steps_on(store) == ["12", "14"]
    toy.assert_same(
        state_of(URL),
        toy.last_state(tmp_path / "whole", toy.abstract(toy.make_mesh(1, 1), toy.init_state())),
    )
    assert [line for line in lines(URL) if line[0] != 7] == lines(tmp_path / "whole")
    assert not [name for name in objects.find_objects(URL) if "lock" in name or "tmp" in name]


@pytest.mark.parametrize("begins_at", ["", "checkpoints/6/model", "checkpoints/7/MANIFEST"])
def test_a_minute_without_answers_ends_no_run(store, monkeypatch, begins_at):
    scale = 0.01
    retry = retries.Retry(first_seconds=scale, longest_seconds=30 * scale, draw=lambda: 0.5)
    monkeypatch.setattr(retries, "RETRY", retry)
    silent_until = []

    def fault(method, path):
        if not silent_until and begins_at in path:
            silent_until.append(time.monotonic() + 60 * scale)
        return "refuse" if silent_until and time.monotonic() < silent_until[0] else None

    store.fault = fault
    toy.run(URL, 7, save_every=3, log_every=2)
    assert silent_until, "the minute has begun"
    assert steps_on(store) == ["6", "7"]
    assert [step for step, _ in lines(URL)] == [2, 4, 6, 7]


def test_a_damaged_step_on_the_bucket_is_set_aside_there(store, caplog):
    toy.run(URL, 7, save_every=3, log_every=2)
    [key] = [n for n in objects.find_objects(URL) if "/7/model/" in n and "/d/" in n][:1]
    [content] = objects.read_objects([f"{URL}/{key}"])
    objects.write_object(f"{URL}/{key}", content[:-1] + bytes([content[-1] ^ 1]))
    toy.run(URL, 9, save_every=3, log_every=2)
    assert "resum" in caplog.text or "7.damaged" in caplog.text
    assert steps_on(store) == ["6", "7.damaged", "9"]


def test_a_step_without_a_manifest_was_never_complete(store):
    toy.run(URL, 7, save_every=3, log_every=2)
    objects.delete_objects([f"{URL}/checkpoints/7/MANIFEST.json"])
    with BucketWorkdir(URL) as local:
        assert checkpoints.find_step(local.folder).name == "6"
    assert steps_on(store) == ["6"]


def test_readers_copy_the_parameters_of_the_last_whole_step_and_no_more(store):
    toy.run(URL, 7, save_every=3, log_every=2)
    state = state_of(URL)
    store.requests.clear()
    for url in (URL, f"{URL}/checkpoints", f"{URL}/checkpoints/7"):
        step = checkpoints.find_whole_step(local_copy(url))
        assert step.name == "7"
        model = checkpoints.read_model(step)
        toy.assert_same(model, {"params": state.params, "batch_stats": state.batch_stats})
    assert not any("/training/" in path for method, path in store.requests if method == "GET")
    [whole] = objects.describe([f"{URL}/metrics.jsonl"])
    assert local_copy(whole.url).stat().st_size == whole.size
    with pytest.raises(FileNotFoundError, match="runs/none: no such file or folder"):
        local_copy(f"{URL}/none".replace("first/", ""))


def test_files_that_vanish_during_an_upload_do_not_end_the_run(store):
    with BucketWorkdir(URL) as local:
        (local.folder / "a").write_text("stays")
        vanishing = local.folder / "b"
        vanishing.write_text("renamed before its turn")

        def vanish(method, path):
            if path.endswith("/a"):
                vanishing.unlink(missing_ok=True)

        store.fault = vanish
    assert sorted(objects.find_objects(URL)) == ["a"]


def test_readers_copy_anew_what_has_changed_since(store):
    url = f"s3://{object_store.BUCKET}/model.pth"
    objects.write_object(url, b"one")
    first = local_copy(url)
    assert local_copy(url) == first
    objects.write_object(url, b"two")
    assert local_copy(url).read_bytes() == b"two"
    toy.run(URL, 7, save_every=3, log_every=2)
    assert checkpoints.find_whole_step(local_copy(URL)).name == "7"
    toy.run(URL, 9, save_every=3, log_every=2)
    assert checkpoints.find_whole_step(local_copy(URL)).name == "9"


def test_runs_on_a_bucket_are_found_and_read(store):
    for name in ("a", "b"):
        objects.write_object(f"s3://{object_store.BUCKET}/sweep/{name}/config.json", b"{}")
        line = b'{"step": 1, "loss": 0.5}\n'
        objects.write_object(f"s3://{object_store.BUCKET}/sweep/{name}/metrics.jsonl", line)
    runs = read_runs(find_runs([f"s3://{object_store.BUCKET}/sweep"]))
    assert [(run.name, run.last_step) for run in runs] == [("a", 1), ("b", 1)]
    assert len(find_runs([f"s3://{object_store.BUCKET}/sweep/a"])) == 1


class Best:
    name = "recall"

    def __init__(self):
        self.values = iter([0.1, 0.9, 0.2, 0.3, 0.4])

    def __call__(self, variables):
        return {"r1": next(self.values)}


def test_the_best_step_is_kept_on_the_bucket(store):
    toy.run(URL, 10, save_every=2, evaluators=[(Best(), 2)], best_metric="recall/r1")
    assert steps_on(store) == ["10", "4", "8"]


def test_a_second_run_is_refused_and_a_dead_ones_lock_is_taken_over(store, caplog):
    from groupvit_jax.runs.lock import RunLock

    with RunLock(URL), pytest.raises(ValueError, match=f"--workdir={URL}: in use by process"):
        toy.run(URL, 1)
    left = {
        "host": "x",
        "pid": 1,
        "machine": "another",
        "process_start": "1",
        "id": "a",
        "beat": "1",
    }
    objects.write_object(f"{URL}/run-4.lock", json.dumps(left).encode())
    with RunLock(URL, sleep=lambda seconds: None):
        assert [name for name in objects.find_objects(URL)] == ["run-5.lock"]
    assert "run-4.lock: removed, the run that held it has died" in caplog.text


def test_an_upload_that_is_refused_ends_the_run_with_one_sentence(store, tmp_path):
    store.fault = lambda method, path: "403" if method == "PUT" and "checkpoints" in path else None
    with pytest.raises(Exception, match=f"{URL}: the run could not be written") as error:
        toy.run(URL, 3, save_every=1)
    assert "\n" not in str(error.value)


def test_kills_lose_nothing_on_a_bucket_either(store, tmp_path):
    store.fault = fails_now_and_then(1)
    ends = kills.disturb(tmp_path, 3, 1, seed=0, num_steps=90, url=URL)
    assert ends["killed"] == 3


def test_two_processes_without_a_common_disk_resume_after_a_kill(store, tmp_path):
    """Each has a cache of its own; the second reads the bucket and never writes a step."""
    store.fault = fails_now_and_then(2)
    log = kills.Log(tmp_path / "log")
    run = kills.Run(URL, 1000, 2, log.path)
    wait_until(lambda: run.ended() or has_step(URL), interval=0.2)
    run.kill_one_after_another(random.Random(0))
    assert run.wait() == {-9}, log.read()
    num_steps = max(map(int, steps_on(store))) // 5 * 5 + 10
    assert kills.Run(URL, num_steps, 2, log.path).wait() == {0}, log.read()
    assert len(steps_on(store)) == 2, "the last two are kept"
    mesh = toy.make_mesh(1, 2)
    toy.run(tmp_path / "whole", num_steps, mesh=mesh, width=kills.WIDTH, save_every=3)
    kills.check_equal(URL, tmp_path / "whole", num_steps)
