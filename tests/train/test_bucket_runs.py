"""Runs whose workdir is on a bucket end as those in a folder."""

import json
import random
import threading
import time

import pytest

from groupvit_jax.data.storage import objects
from groupvit_jax.runs import checkpoints
from groupvit_jax.runs.bucket.fetching import local_copy
from groupvit_jax.runs.bucket.mirror import BucketWorkdir
from groupvit_jax.runs.reading import find_runs, read_runs
from tests.data import object_store, quick_retries
from tests.train import kills, toy
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

ON_BOTH = pytest.mark.parametrize("served", ["s3", "gs"], indirect=True)
ON_GCS = pytest.mark.parametrize("served", ["gs"], indirect=True)


@pytest.fixture(scope="module")
def served(request):
    """A server of S3's API, or of that which the test asks for."""
    with object_store.serve(getattr(request, "param", "s3")) as store:
        yield store


@pytest.fixture
def store(served, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    served.clear()
    with quick_retries.patched():
        yield served


@pytest.fixture
def url(store):
    return f"{store.root}/runs/first"


def steps_at(url):
    names = objects.find_objects(f"{url}/checkpoints")
    return sorted({name.split("/")[0] for name in names})


def whole_steps(url):
    names = [name.split("/") for name in objects.find_objects(f"{url}/checkpoints")]
    return [step for step, *rest in names if rest == ["MANIFEST.json"] and step.isdecimal()]


def damage(url, step):
    model = f"{url}/checkpoints/{step}/model"
    name = next(name for name in objects.find_objects(model) if "d/" in name)
    [content] = objects.read_objects([f"{model}/{name}"])
    objects.write_object(f"{model}/{name}", content[:-1] + bytes([content[-1] ^ 1]))


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


@ON_BOTH
def test_a_run_on_a_bucket_resumes_and_leaves_what_one_in_a_folder_does(store, url, tmp_path):
    store.fault = fails_now_and_then(0)
    toy.run(url, 7, save_every=3, log_every=2)
    assert steps_at(url) == ["6", "7"], "the last two"
    assert not list((tmp_path / "cache").rglob("*.*")), "the cache is removed"
    toy.run(url, 14, save_every=3, log_every=2)
    store.fault = lambda method, path: None
    toy.run(tmp_path / "whole", 14, save_every=3, log_every=2)
    assert steps_at(url) == ["12", "14"]
    toy.assert_same(
        state_of(url),
        toy.last_state(tmp_path / "whole", toy.abstract(toy.make_mesh(1, 1), toy.init_state())),
    )
    assert [line for line in lines(url) if line[0] != 7] == lines(tmp_path / "whole")
    assert not [name for name in objects.find_objects(url) if "lock" in name or "tmp" in name]


@pytest.mark.parametrize(
    ("served", "begins_at"),
    [("gs", ""), ("s3", "checkpoints/6/model"), ("gs", "checkpoints/7/MANIFEST")],
    indirect=["served"],
)
def test_a_minute_without_answers_ends_no_run(store, url, begins_at):
    minute, silent_until = 60 * quick_retries.SCALE, []

    def fault(method, path):
        if not silent_until and begins_at in path:
            silent_until.append(time.monotonic() + minute)
        return "refuse" if silent_until and time.monotonic() < silent_until[0] else None

    store.fault = fault
    with quick_retries.patched(draw=lambda: 0.5):
        toy.run(url, 7, save_every=3, log_every=2)
    assert silent_until, "the minute has begun"
    assert steps_at(url) == ["6", "7"]
    assert [step for step, _ in lines(url)] == [2, 4, 6, 7]


@ON_GCS
def test_a_slow_bucket_never_has_fewer_steps_than_the_run_keeps(store, url, monkeypatch):
    """By the end of an upload, the run has deleted all that was uploaded."""
    delete, left = objects.delete_objects, []

    def counted(urls):
        delete(urls)
        left.append(len(whole_steps(url)))

    monkeypatch.setattr(objects, "delete_objects", counted)
    store.fault = lambda method, path: time.sleep(0.3) if "MANIFEST" in path else None
    toy.run(url, 20, save_every=1)
    assert min(left) == 2
    assert steps_at(url) == ["19", "20"]


@ON_BOTH
def test_a_damaged_step_on_the_bucket_is_set_aside_there(store, url, caplog):
    toy.run(url, 7, save_every=3, log_every=2)
    damage(url, 7)
    toy.run(url, 9, save_every=3, log_every=2)
    assert "resum" in caplog.text or "7.damaged" in caplog.text
    assert steps_at(url) == ["6", "7.damaged", "9"]


@ON_BOTH
def test_a_run_on_a_bucket_goes_back_once(store, url, caplog):
    store.fault = fails_now_and_then(3)
    whole = toy.run(url, 9, save_every=3, log_every=1)
    before = lines(url)
    with pytest.raises(ValueError, match=f"4 found, expected a step in {url}/checkpoints .6, 9."):
        toy.run(url, 9, save_every=3, restore_step=4)
    assert steps_at(url) == ["6", "9"]
    for _ in range(2):  # as a scheduler starts the command again
        assert toy.run(url, 9, save_every=3, log_every=1, restore_step=6).step == 9
    assert f"later steps are now in {url}/checkpoints/rolled_back_to_6" in caplog.text
    assert caplog.text.count("was done by an earlier start and isn't repeated") == 1
    assert steps_at(url) == ["6", "9", "rolled_back_to_6"]
    toy.assert_same(state_of(url).params, whole.state.params)
    assert lines(url) == before
    moved = checkpoints.find_whole_step(local_copy(f"{url}/checkpoints/rolled_back_to_6/9"))
    toy.assert_same(checkpoints.read_model(moved)["params"], whole.state.params)


def test_a_rollback_that_was_cut_off_is_finished_by_the_next(store, url, monkeypatch):
    toy.run(url, 9, save_every=3)
    delete = objects.delete_objects

    def cut_off(urls):
        if any("/checkpoints/" in url for url in urls):
            raise KeyboardInterrupt
        delete(urls)

    with monkeypatch.context() as patch:
        patch.setattr(objects, "delete_objects", cut_off)
        with pytest.raises(KeyboardInterrupt):
            toy.run(url, 9, save_every=3, restore_step=6)
    assert "rolled_back_to_6" in steps_at(url)
    assert toy.run(url, 9, save_every=3, restore_step=6).step == 9
    assert steps_at(url) == ["6", "9", "rolled_back_to_6"]


def test_a_damaged_step_is_not_gone_back_to(store, url):
    toy.run(url, 9, save_every=3)
    damage(url, 6)
    message = f"--restore_step=6: {url}/checkpoints/6/model/.*differs from its checksum"
    with pytest.raises(ValueError, match=message):
        toy.run(url, 9, save_every=3, restore_step=6)
    assert steps_at(url) == ["6", "9"]


@ON_GCS
def test_a_step_without_a_manifest_was_never_complete(store, url):
    toy.run(url, 7, save_every=3, log_every=2)
    objects.delete_objects([f"{url}/checkpoints/7/MANIFEST.json"])
    with BucketWorkdir(url) as local:
        assert checkpoints.find_step(local.folder).name == "6"
    assert steps_at(url) == ["6"]


def test_readers_copy_the_parameters_of_the_last_whole_step_and_no_more(store, url):
    toy.run(url, 7, save_every=3, log_every=2)
    state = state_of(url)
    store.requests.clear()
    for place in (url, f"{url}/checkpoints", f"{url}/checkpoints/7"):
        step = checkpoints.find_whole_step(local_copy(place))
        assert step.name == "7"
        model = checkpoints.read_model(step)
        toy.assert_same(model, {"params": state.params, "batch_stats": state.batch_stats})
    assert not any("/training/" in path for method, path in store.requests if method == "GET")
    [whole] = objects.describe([f"{url}/metrics.jsonl"])
    assert local_copy(whole.url).stat().st_size == whole.size
    with pytest.raises(FileNotFoundError, match="runs/none: no such file or folder"):
        local_copy(f"{url}/none".replace("first/", ""))


@ON_GCS
def test_files_that_vanish_during_an_upload_do_not_end_the_run(store, url):
    with BucketWorkdir(url) as local:
        (local.folder / "a").write_text("stays")
        vanishing = local.folder / "b"
        vanishing.write_text("renamed before its turn")

        def vanish(method, path):
            if path.endswith("/a"):
                vanishing.unlink(missing_ok=True)

        store.fault = vanish
    assert sorted(objects.find_objects(url)) == ["a"]


@ON_GCS
def test_readers_copy_anew_what_has_changed_since(store, url):
    weights = f"{store.root}/model.pth"
    objects.write_object(weights, b"one")
    first = local_copy(weights)
    assert local_copy(weights) == first
    objects.write_object(weights, b"two")
    assert local_copy(weights).read_bytes() == b"two"
    toy.run(url, 7, save_every=3, log_every=2)
    assert checkpoints.find_whole_step(local_copy(url)).name == "7"
    toy.run(url, 9, save_every=3, log_every=2)
    assert checkpoints.find_whole_step(local_copy(url)).name == "9"


def test_runs_on_a_bucket_are_found_and_read(store):
    for name in ("a", "b"):
        objects.write_object(f"{store.root}/sweep/{name}/config.json", b"{}")
        line = b'{"step": 1, "loss": 0.5}\n'
        objects.write_object(f"{store.root}/sweep/{name}/metrics.jsonl", line)
    runs = read_runs(find_runs([f"{store.root}/sweep"]))
    assert [(run.name, run.last_step) for run in runs] == [("a", 1), ("b", 1)]
    assert len(find_runs([f"{store.root}/sweep/a"])) == 1


class Best:
    name = "recall"

    def __init__(self):
        self.values = iter([0.1, 0.9, 0.2, 0.3, 0.4])

    def __call__(self, variables):
        return {"r1": next(self.values)}


@ON_GCS
def test_the_best_step_is_kept_on_the_bucket(store, url):
    toy.run(url, 10, save_every=2, evaluators=[(Best(), 2)], best_metric="recall/r1")
    assert steps_at(url) == ["10", "4", "8"]


@ON_BOTH
def test_a_second_run_is_refused_and_a_dead_ones_lock_is_taken_over(store, url, caplog):
    from groupvit_jax.runs.lock import RunLock

    with RunLock(url), pytest.raises(ValueError, match=f"--workdir={url}: in use by process"):
        toy.run(url, 1)
    left = {
        "host": "x",
        "pid": 1,
        "machine": "another",
        "process_start": "1",
        "id": "a",
        "beat": "1",
    }
    objects.write_object(f"{url}/run-4.lock", json.dumps(left).encode())
    with RunLock(url, sleep=lambda seconds: None):
        assert [name for name in objects.find_objects(url)] == ["run-5.lock"]
    assert "run-4.lock: removed, the run that held it has died" in caplog.text


@ON_BOTH
def test_an_upload_that_is_refused_ends_the_run_with_one_sentence(store, url, tmp_path):
    store.fault = lambda method, path: "403" if method == "PUT" and "checkpoints" in path else None
    with pytest.raises(Exception, match=f"{url}: the run could not be written") as error:
        toy.run(url, 3, save_every=1)
    assert "\n" not in str(error.value)


@ON_GCS
def test_kills_lose_nothing_on_a_bucket_either(store, url, tmp_path):
    store.fault = fails_now_and_then(1)
    ends = kills.disturb(tmp_path, 3, 1, seed=0, num_steps=90, url=url)
    assert ends["killed"] == 3


@pytest.mark.parametrize(
    ("served", "goes_back"), [("s3", True), ("gs", False)], indirect=["served"]
)
def test_two_processes_without_a_common_disk_resume_after_a_kill(store, url, tmp_path, goes_back):
    """Each has a cache of its own; the second reads the bucket and never writes a step.

    They go on from the last step but one: the last is damaged, or the command goes back.
    """
    store.fault = fails_now_and_then(2)
    log = kills.Log(tmp_path / "log")
    run = kills.Run(url, 1_000_000, 2, log.path, best=True)  # it is killed long before
    wait_until(lambda: run.ended() or len(whole_steps(url)) > 1, interval=0.2)
    run.kill_one_after_another(random.Random(0))
    assert run.wait() == {-9}, log.read()
    before, newest = sorted(map(int, whole_steps(url)))[-2:]
    if goes_back:
        options, said, left = {"restore_step": before}, "later steps", f"rolled_back_to_{before}"
    else:
        damage(url, newest)
        options, said, left = {}, "damaged checkpoint", f"{newest}.damaged"
    num_steps = newest // 5 * 5 + 10
    run = kills.Run(url, num_steps, 2, log.path, best=True, **options)
    assert run.wait() == {0}, log.read()
    assert said in log.read()
    last = [(num_steps - 1) // 3 * 3, num_steps]
    assert sorted(map(int, whole_steps(url))) == [3, *last], "the best by the metric and the last"
    assert left in steps_at(url)
    mesh = toy.make_mesh(1, 2)
    toy.run(tmp_path / "whole", num_steps, mesh=mesh, width=kills.WIDTH, save_every=num_steps)
    kills.check_equal(url, tmp_path / "whole", num_steps)
