import errno
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from groupvit_jax.data.sources.pairs import WebDatasetSource, make_source
from groupvit_jax.data.storage import objects as storage
from groupvit_jax.data.storage.cache import KEEP_SECONDS, ObjectCache, make_cache
from groupvit_jax.data.storage.retries import StorageError
from tests.data.storage.test_objects import open_source, put_shards, samples_of
from tests.waiting import PATIENCE, wait_until

SIZE = 1000


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 1e9

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def make(tmp_path, clock, num_objects=3) -> ObjectCache:
    """A cache with room for some objects of `SIZE`."""
    return ObjectCache(str(tmp_path / "cache"), num_objects * SIZE, clock)


def put(store, *names, size=SIZE):
    return storage.describe(
        [store.put(name, name.encode() * (size // len(name))) for name in names]
    )


def folders(tmp_path) -> list[Path]:
    root = tmp_path / "cache" / "groupvit_objects"
    return sorted(path for path in root.iterdir() if path.is_dir())


def num_bytes(tmp_path) -> int:
    return sum(file.stat().st_size for folder in folders(tmp_path) for file in folder.iterdir())


def is_cached(cache, stored) -> bool:
    return cache.read(stored, 0, 1) is not None


def test_what_was_fetched_is_read_without_the_store(store, tmp_path, clock):
    cache = make(tmp_path, clock)
    [stored] = put(store, "a")
    assert cache.read(stored, 0, 10) is None
    assert cache.fetch(stored).read_bytes() == b"a" * SIZE
    store.requests.clear()
    assert cache.read(stored, 990, 10) == b"a" * 10
    assert pickle.loads(pickle.dumps(cache)).read(stored, 5, 1) == b"a"
    assert cache.fetch(stored) is not None
    assert not store.requests


def test_samples_come_from_the_cache_once_they_are_there(store, tmp_path):
    local = WebDatasetSource(put_shards(store, tmp_path))
    cache = make_cache(str(tmp_path / "cache"), 1.0)
    source = open_source(cache=cache)  # indexing downloads the shards
    store.requests.clear()
    assert samples_of(source) == samples_of(local)
    assert not store.requests


def test_samples_are_read_by_range_until_their_shard_is_there(store, tmp_path):
    local = WebDatasetSource(put_shards(store, tmp_path))
    open_source()  # the indices
    source = open_source(cache=make_cache(str(tmp_path / "cache"), 1.0))
    assert not folders(tmp_path)
    assert list(source.read_many(range(10))) == samples_of(local)

    def complete():
        return [f for f in folders(tmp_path) if not f.name.endswith(".partial")]

    wait_until(lambda: len(complete()) == 2, explain=lambda: "no download in the background")
    store.requests.clear()
    assert samples_of(source) == samples_of(local)
    assert not store.requests


def test_a_set_that_does_not_fit_is_read_by_range(store, tmp_path):
    local = WebDatasetSource(put_shards(store, tmp_path))
    size = (tmp_path / "00.tar").stat().st_size
    source = open_source(cache=make_cache(str(tmp_path / "cache"), 1.5 * size / 2**30))
    for _ in range(2):
        store.requests.clear()
        assert samples_of(source) == samples_of(local)
        assert (store.reads("sets/00.tar"), store.reads("sets/01.tar")) == (0, 5)
    assert num_bytes(tmp_path) == size


# Bound


def test_the_bound_is_kept_and_the_least_recently_used_goes(store, tmp_path, clock):
    cache = make(tmp_path, clock)
    a, b, c, d, e = put(store, *"abcde")
    for stored in (a, b, c):
        cache.fetch(stored)
        clock.now += 100
    clock.now += KEEP_SECONDS
    assert is_cached(cache, a)  # used again
    assert cache.fetch(d) is not None
    assert [is_cached(cache, stored) for stored in (a, c, d)] == [True, True, True]
    assert not is_cached(cache, b)
    clock.now += KEEP_SECONDS + 1
    cache.fetch(e)
    assert num_bytes(tmp_path) == 3 * SIZE


def test_what_is_in_use_is_not_pushed_out(store, tmp_path, clock):
    cache = make(tmp_path, clock)
    *held, new = put(store, *"abcd")
    for stored in held:
        cache.fetch(stored)
    clock.now += KEEP_SECONDS - 1
    assert cache.fetch(new) is None
    assert all(is_cached(cache, stored) for stored in held)


def test_nothing_goes_for_what_cannot_fit(store, tmp_path, clock):
    cache = make(tmp_path, clock)
    a, b = put(store, "a", "b")
    cache.fetch(a)
    clock.now += 2 * KEEP_SECONDS
    [large] = put(store, "c", size=4 * SIZE)
    assert cache.fetch(large) is None
    assert cache.fetch(b._replace(size=10**18)) is None
    assert is_cached(cache, a)


def test_a_held_folder_is_not_evicted(store, tmp_path, clock):
    cache = make(tmp_path, clock, num_objects=2)
    a, b, c = put(store, *"abc")
    held = cache.fetch_folder({"x.json": a, "y": b})
    assert (held.path / "y").read_bytes() == b"b" * SIZE
    clock.now += 2 * KEEP_SECONDS
    assert cache.fetch(c) is None
    with pytest.raises(ValueError, match=r"0\.00 GiB don't fit into the config\.data\.cache_gib"):
        cache.fetch_folder({"z": c})
    held.lock.release()
    assert cache.fetch(c) is not None
    assert not held.path.exists()


def test_files_of_others_stay(store, tmp_path, clock):
    cache = make(tmp_path, clock, num_objects=1)
    a, b = put(store, "a", "b")
    root = tmp_path / "cache" / "groupvit_objects"
    theirs = [tmp_path / "cache" / "mine.txt", root / "notes.txt", root / "folder" / "x"]
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / ("0" * 64)).symlink_to(outside)
    for path in (*theirs, outside / "x"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
        os.utime(path, (0, 0))
    in_entry = cache.fetch(a).parent / "foreign"
    in_entry.mkdir()
    clock.now += 2 * KEEP_SECONDS
    cache.fetch(b)
    assert all(path.read_text() == "x" for path in (*theirs, outside / "x"))
    assert list(root.glob("*/foreign"))


# Downloads


@pytest.mark.parametrize("what", ["503", "cut"])
def test_a_download_survives_transient_errors(store, tmp_path, clock, what):
    [stored] = put(store, "a")
    store.fault = store.first(2, what)
    assert make(tmp_path, clock).fetch(stored).read_bytes() == b"a" * SIZE


def test_a_failed_download_leaves_nothing(store, tmp_path, clock, caplog):
    cache = make(tmp_path, clock)
    [stored] = put(store, "a")
    store.fault = lambda method, path: "cut"
    assert cache.fetch(stored) is None
    assert "s3://pairs/a: " in caplog.text
    assert folders(tmp_path) == []
    store.fault = lambda method, path: None
    assert cache.fetch(stored) is not None


def test_a_full_disk_leaves_nothing(store, tmp_path, clock, caplog, monkeypatch):
    def fail(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    [stored] = put(store, "a")
    assert make(tmp_path, clock).fetch(stored) is None
    assert "No space left" in caplog.text
    assert folders(tmp_path) == []


def test_an_object_that_changes_meanwhile_is_not_kept(store, tmp_path, clock, caplog):
    cache = make(tmp_path, clock)
    [stored] = put(store, "a")
    store.put("a", b"b" * SIZE)
    assert cache.fetch(stored) is None
    assert "changed while it was downloaded" in caplog.text
    assert folders(tmp_path) == []


def test_a_changed_object_is_another_entry(store, tmp_path, clock):
    cache = make(tmp_path, clock)
    [old] = put(store, "a")
    cache.fetch(old)
    [new] = storage.describe([store.put("a", b"b" * SIZE)])
    assert cache.read(new, 0, 1) is None
    assert cache.fetch(new).read_bytes() == b"b" * SIZE


def test_an_object_that_was_cut_on_the_disk_is_read_from_the_store(store, tmp_path, clock):
    cache = make(tmp_path, clock)
    [stored] = put(store, "a")
    os.truncate(cache.fetch(stored), 10)
    assert cache.read(stored, 5, 10) is None


def test_a_partial_download_is_not_read_and_goes_when_its_process_ended(
    store, tmp_path, clock, monkeypatch
):
    cache = make(tmp_path, clock, num_objects=1)
    a, b = put(store, "a", "b")
    started, broken = threading.Event(), threading.Event()
    read_ranges = storage.read_ranges

    def stall(ranges):
        if ranges[0].stored == a:
            started.set()
            broken.wait(PATIENCE)
            raise StorageError("the connection was lost")
        return read_ranges(ranges)

    monkeypatch.setattr(storage, "read_ranges", stall)
    download = threading.Thread(target=cache.fetch, args=[a])
    download.start()
    assert started.wait(PATIENCE)
    assert [f.suffix for f in folders(tmp_path)] == [".partial"]
    assert not is_cached(cache, a)
    assert cache.fetch(a) is None  # another is at it
    assert cache.fetch(b) is None  # the download in progress counts against the bound
    assert num_bytes(tmp_path) == SIZE
    broken.set()
    download.join()
    assert cache.fetch(b) is not None
    assert [f.suffix for f in folders(tmp_path)] == [""]


SHARING_PROGRAM = """
import pickle, sys
cache, objects, contents = pickle.loads(bytes.fromhex(sys.argv[1]))
held = []
for stored, content in zip(objects, contents):
    folder = cache.fetch_folder({"object": stored})
    assert (folder.path / "object").read_bytes() == content
"""


EVICTING_PROGRAM = """
import pickle, random, sys
from groupvit_jax.data.storage import cache as object_cache
object_cache.KEEP_SECONDS = -1.0
cache, objects, contents = pickle.loads(bytes.fromhex(sys.argv[1]))
num_local = 0
for _ in range(150):
    i = random.randrange(8)
    cache.fetch(objects[i])
    data = cache.read(objects[i], 0, len(contents[i]))
    assert data in (None, contents[i])
    num_local += data is not None
assert num_local > 20, num_local
"""


def run_two(program, store, tmp_path, max_bytes) -> None:
    """Runs a program twice at once on a cache and eight objects."""
    contents = [bytes([i]) * (100_000 + i) for i in range(8)]
    objects = storage.describe([store.put(str(i), content) for i, content in enumerate(contents)])
    cache = ObjectCache(str(tmp_path / "cache"), max_bytes)
    argument = pickle.dumps((cache, objects, contents)).hex()
    (tmp_path / "program.py").write_text(program.replace("sys.argv[1]", repr(argument)))
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    command = [sys.executable, str(tmp_path / "program.py")]
    store.requests.clear()
    processes = [subprocess.Popen(command, env=environment) for _ in range(2)]
    while any(process.poll() is None for process in processes):
        try:
            assert num_bytes(tmp_path) <= max_bytes
        except FileNotFoundError:  # evicted while it was measured
            continue
        time.sleep(0.001)
    assert [process.returncode for process in processes] == [0, 0]


@pytest.mark.slow
def test_processes_share_a_folder(store, tmp_path):
    run_two(SHARING_PROGRAM, store, tmp_path, 2**20)
    assert [store.reads(str(i)) for i in range(8)] == [1] * 8
    assert len(folders(tmp_path)) == 8


@pytest.mark.slow
def test_processes_that_evict_each_others_objects_read_whole_ones(store, tmp_path):
    run_two(EVICTING_PROGRAM, store, tmp_path, 350_000)
    assert num_bytes(tmp_path) <= 350_000


def test_a_folder_that_cannot_be_used_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for folder, gib, message in [
        (f"{tmp_path}/file", 1.0, r"config\.data\.cache_dir='.*file': not writable"),
        (str(tmp_path), 0.0, r"config\.data\.cache_gib=0\.0: expected a positive number"),
        ("gs://bucket/cache", 1.0, r"config\.data\.cache_dir='gs://bucket/cache': a URL found"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_cache(folder, gib)
    assert make_cache("", 1.0) is None


@pytest.mark.parametrize("name", ["../x", "/etc/x", "..", "", "a/b", "a\0b"])
def test_only_plain_names_become_files(store, tmp_path, clock, name):
    [stored] = put(store, "a")
    with pytest.raises(ValueError, match="is not a file name"):
        make(tmp_path, clock).fetch_folder({name: stored})


def test_a_folder_that_cannot_be_read_is_an_error(store, tmp_path, clock):
    [stored] = put(store, "a")
    store.fault = lambda method, path: "403"
    with pytest.raises(StorageError, match=r"s3://pairs/a: PermissionError"):
        make(tmp_path, clock).fetch_folder({"x": stored})
    assert folders(tmp_path) == []


# TFDS


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    from tests.data.sources.test_pairs import build

    return Path(build(tmp_path_factory.mktemp("tfds"), "file").data_dir)


def put_set(store, prepared) -> str:
    for file in prepared.iterdir():
        store.put(f"sets/{file.name}", file.read_bytes())
    store.put("sets/other.bin", bytes(10))
    return "s3://pairs/sets"


def open_set(url, cache, split="train"):
    return make_source("x", {"kind": "tfds", "data_dir": url, "split": split}, cache=cache)


def test_a_prepared_set_is_that_of_local_files(store, tmp_path, prepared):
    url = put_set(store, prepared)
    source = open_set(url, make_cache(str(tmp_path / "cache"), 1.0))
    expected = samples_of(open_set(str(prepared), None))
    assert samples_of(source) == expected
    assert samples_of(pickle.loads(pickle.dumps(source))) == expected
    assert store.reads("sets/other.bin") == 0
    store.requests.clear()
    open_set(url, make_cache(str(tmp_path / "cache"), 1.0))
    assert store.reads("sets/pairs") == 0, "the records are there"


def test_errors_of_a_prepared_set_name_the_field(store, tmp_path, prepared):
    url = put_set(store, prepared)
    cache = make_cache(str(tmp_path / "cache"), 1.0)
    for folder, used, split, message in [
        (url, None, "train", r"expected a folder for it in config\.data\.cache_dir"),
        (f"{url}/none", cache, "train", r"s3://pairs/sets/none"),
        (url, cache, "dev", "dev"),
        (url, make_cache(str(tmp_path / "small"), 1e-7), "train", "don't fit into the config"),
    ]:
        with pytest.raises(ValueError, match=rf"sources\.x\.data_dir=.*{message}"):
            open_set(folder, used, split)
    [record] = [file.name for file in prepared.iterdir() if ".array_record" in file.name]
    store.delete(f"sets/{record}")
    with pytest.raises(ValueError, match=rf"{record} is missing"):
        open_set(url, cache)
