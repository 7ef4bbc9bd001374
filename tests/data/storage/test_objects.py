import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs import base
from groupvit_jax.data.pipeline.contrastive import TrainLoader, make_train_examples
from groupvit_jax.data.sources import tar_index
from groupvit_jax.data.sources.pairs import WebDatasetSource, make_source
from groupvit_jax.data.storage import objects
from groupvit_jax.data.storage.objects import Range, StoredObject
from groupvit_jax.data.storage.retries import StorageError
from tests.data.pipeline.test_contrastive import NumberTokenizer, small_transform
from tests.data.shard_files import encode, write_pairs, write_tar
from tests.waiting import PATIENCE


def put_shards(store, tmp_path, num_shards=2, per_shard=5) -> list[str]:
    """Writes shards to the store and beside; returns the local paths."""
    paths = []
    for i in range(num_shards):
        path = tmp_path / f"{i:02d}.tar"
        paths.append(write_pairs(path, range(per_shard * i, per_shard * (i + 1))))
        store.put(f"sets/{path.name}", path.read_bytes())
    return paths


def open_source(pattern="s3://pairs/sets/*.tar", cache=None):
    return make_source("x", {"kind": "webdataset", "pattern": pattern}, cache=cache)


def samples_of(source):
    return [source[i] for i in range(len(source))]


# Samples


@pytest.mark.parametrize("pattern", ["s3://pairs/sets/*.tar", "s3://pairs/sets/{00..02}.tar"])
def test_samples_are_those_of_local_files(store, tmp_path, pattern):
    local = WebDatasetSource(put_shards(store, tmp_path, num_shards=3))
    source = open_source(pattern)
    assert samples_of(source) == samples_of(local)
    order = [7, 0, 14, 7, 3]
    assert list(source.read_many(order)) == [local[i] for i in order]
    assert source.locate(6) == "s3://pairs/sets/01.tar: 00006"


def test_local_files_and_objects_are_one_set(store, tmp_path):
    paths = put_shards(store, tmp_path)
    source = open_source(f"s3://pairs/sets/01.tar,{paths[0]}")
    assert samples_of(source) == samples_of(WebDatasetSource(paths[::-1]))


def test_a_sample_is_one_request(store, tmp_path):
    put_shards(store, tmp_path)
    source = open_source()
    store.requests.clear()
    list(source.read_many(range(10)))
    assert store.reads() == len(store.requests) == 10


def test_other_protocols_are_fsspecs(tmp_path):
    paths = [write_pairs(tmp_path / "0.tar", range(3))]
    source = open_source(f"file://{tmp_path}/*.tar")
    assert samples_of(source) == samples_of(WebDatasetSource(paths))


def test_a_truncated_object_keeps_what_is_whole(store, tmp_path, caplog):
    data = Path(write_pairs(tmp_path / "0.tar", range(4))).read_bytes()
    store.put("sets/0.tar", data[:4000])
    (tmp_path / "cut.tar").write_bytes(data[:4000])
    source, local = open_source(), WebDatasetSource([str(tmp_path / "cut.tar")])
    assert len(source) == len(local)
    assert source[0] == local[0]
    assert "s3://pairs/sets/0.tar: the tar breaks off at byte" in caplog.text


# Index


def test_index_streams_a_shard_once_and_skips_large_members(store, tmp_path, monkeypatch):
    monkeypatch.setattr(objects, "_READER_BLOCK", 4096)
    large = encode(".png") + bytes(200_000)
    path = write_tar(tmp_path / "0.tar", [(str(i), {"jpg": large, "txt": b"a"}) for i in range(3)])
    url = store.put("sets/0.tar", Path(path).read_bytes())
    expected = tar_index.scan(path).index
    store.requests.clear()
    [file] = tar_index.load_indices(objects.describe([url]))
    np.testing.assert_array_equal(np.load(file), expected)
    assert store.reads() * 4096 < 200_000
    store.requests.clear()
    tar_index.load_indices(objects.describe([url]))
    assert store.reads() == 0


def test_a_changed_object_is_indexed_anew(store, tmp_path):
    put_shards(store, tmp_path, num_shards=1)
    open_source()
    store.put("sets/00.tar", Path(write_pairs(tmp_path / "new.tar", range(20, 25))).read_bytes())
    source = open_source()
    assert source[0]["captions"] == ["caption 20"]
    assert len(list((tmp_path / "user_cache").rglob("*.npy"))) == 1


def test_machines_share_indices_through_a_store(store, tmp_path, monkeypatch):
    local = WebDatasetSource(put_shards(store, tmp_path))
    config = {"kind": "webdataset", "pattern": "s3://pairs/sets/*.tar"}
    make_source("x", config, "s3://pairs/index/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another_machine"))
    store.requests.clear()
    source = make_source("x", config, "s3://pairs/index")
    assert store.reads("sets") == 0
    assert samples_of(source) == samples_of(local)


def test_an_index_folder_that_cannot_be_written_is_an_error(store, tmp_path):
    put_shards(store, tmp_path)
    config = {"kind": "webdataset", "pattern": "s3://pairs/sets/*.tar"}
    with pytest.raises(StorageError, match=r"^s3://none/index/\w+/\w+\.[\w.-]+\.npy: File"):
        make_source("x", config, "s3://none/index")


@pytest.mark.parametrize(
    "url", ["s3://b/..", "s3://b/a/../../../../evil.tar", "s3://b/" + "x" * 999]
)
def test_no_name_of_an_object_leads_out_of_the_index_folder(tmp_path, monkeypatch, url):
    content = Path(write_pairs(tmp_path / "0.tar", range(3))).read_bytes()
    monkeypatch.setattr(objects, "read_ranges", _local_ranges(content))
    index_dir = tmp_path / "index"
    [file] = tar_index.load_indices([StoredObject(url, len(content), "../..")], str(index_dir))
    assert file.resolve().is_relative_to(index_dir.resolve())
    assert len(np.load(file)) == 3


def _local_ranges(content):
    return lambda ranges: [content[r.offset : r.offset + r.size] for r in ranges]


# Errors


@pytest.mark.parametrize("what", ["503", "cut", "refuse"])
def test_transient_errors_are_retried_after_growing_waits(store, tmp_path, slept, caplog, what):
    local = WebDatasetSource(put_shards(store, tmp_path))
    source = open_source()
    store.fault = store.first(2, what)
    assert list(source.read_many([2, 8])) == [local[2], local[8]]
    # aiohttp asks once more by itself where a connection was closed before the answer.
    assert slept == ([1.0] if what == "refuse" and len(slept) == 1 else [1.0, 2.0])
    assert "s3://pairs/sets/00.tar: " in caplog.text
    assert "attempt 1 of 4 failed for 2 of 2 reads" in caplog.text


def test_only_what_failed_is_asked_for_again(store, tmp_path):
    put_shards(store, tmp_path)
    source = open_source()
    store.requests.clear()
    store.fault = lambda method, path: (
        "503" if path.endswith("01.tar") and store.reads() < 3 else None
    )
    list(source.read_many([0, 9]))
    assert store.reads("sets/00.tar") == 1
    assert store.reads("sets/01.tar") > 1


def test_opening_is_retried_too(store, tmp_path, slept):
    put_shards(store, tmp_path)
    for method, pattern in [("GET", "s3://pairs/sets/*.tar"), ("HEAD", "s3://pairs/sets/00.tar")]:
        store.fault = store.first(1, "503", method)
        assert len(open_source(pattern)) in (5, 10)
    assert slept


@pytest.mark.parametrize("what", ["503", "cut"])
def test_the_last_attempt_ends_in_one_line(store, tmp_path, slept, what):
    put_shards(store, tmp_path)
    source = open_source()
    store.fault = lambda method, path: what
    message = r"^s3://pairs/sets/00\.tar: .*\(the last of 4 attempts\)$"
    with pytest.raises(StorageError, match=message) as caught:
        source[0]
    assert "\n" not in str(caught.value)
    assert slept == [1.0, 2.0, 4.0]


def test_permanent_errors_are_not_retried(store, tmp_path, slept):
    put_shards(store, tmp_path)
    source = open_source()
    store.requests.clear()
    store.fault = lambda method, path: "403"
    with pytest.raises(StorageError, match=r"^s3://pairs/sets/00\.tar: PermissionError: 403 said"):
        source[0]
    assert len(store.requests) == 1
    assert not slept


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("s3://none/*.tar", "s3://none: FileNotFoundError"),
        ("s3://none/a.tar", "s3://none/a.tar: FileNotFoundError: The specified bucket does not"),
        ("s3://pairs/sets/{00..02}.tar", "s3://pairs/sets/02.tar: FileNotFoundError"),
        ("s3://pairs/nothing*.tar", "no file matches it"),
    ],
)
def test_what_is_missing_is_named_with_its_field(store, tmp_path, slept, pattern, said):
    put_shards(store, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config\.data\.sources\.x\.pattern.*" + said):
        open_source(pattern)
    assert not slept


@pytest.mark.parametrize("pattern", ["s3://pairs/sets/*.tar", "s3://pairs/sets/00.tar"])
def test_what_is_forbidden_is_named_with_its_field(store, tmp_path, pattern):
    store.fault = lambda method, path: "403"
    with pytest.raises(ValueError, match=r"sources\.x\.pattern: s3://pairs/sets.*PermissionError"):
        open_source(pattern)


def test_an_unknown_protocol_is_named():
    with pytest.raises(ValueError, match=r"x\.pattern: foo://a/b\.tar: ValueError: Protocol not"):
        open_source("foo://a/b.tar")


def test_declared_sizes_are_not_believed(store, slept):
    url = store.put("a.tar", bytes(1000))
    [real] = objects.describe([url])
    assert real.size == 1000
    vast = real._replace(size=10**15)
    with pytest.raises(StorageError, match=r"a\.tar: OSError: 100 of 200 bytes came"):
        objects.read_ranges([Range(vast, 900, 200)])
    with pytest.raises(StorageError, match=r"a\.tar"):
        objects.read_ranges([Range(vast, 10**14, 1)])


# Processes


def make_config(pattern, num_workers=0):
    config = base.get_config()
    config.data.sources.x = dict(kind="webdataset", pattern=pattern)
    config.data.num_nouns = 0
    config.data.num_workers = num_workers
    config.train.batch_size = 8
    return config


def take(config, num_batches):
    examples = make_train_examples(
        config.data, NumberTokenizer(), image_size=8, seed=0, image_transform=small_transform
    )
    loader = TrainLoader(examples, 8, num_workers=config.data.num_workers)
    batches = [next(loader) for _ in range(num_batches)]
    loader.close()
    return batches


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_are_those_of_local_files(store, tmp_path, num_workers):
    put_shards(store, tmp_path)
    expected = take(make_config(f"{tmp_path}/*.tar"), 5)
    config = make_config("s3://pairs/sets/*.tar", num_workers)
    config.data.cache_dir, config.data.cache_gib = str(tmp_path / "cache"), 1e-3
    for batch, other in zip(take(config, 5), expected, strict=True):
        for name in other:
            np.testing.assert_array_equal(batch[name], other[name])


@pytest.mark.slow
def test_an_error_in_a_worker_is_the_same_line(store, tmp_path):
    put_shards(store, tmp_path)
    config = make_config("s3://pairs/sets/*.tar", num_workers=1)
    examples = make_train_examples(
        config.data, NumberTokenizer(), image_size=8, seed=0, image_transform=small_transform
    )
    store.fault = lambda method, path: "403"
    loader = TrainLoader(examples, 8, num_workers=1)
    with pytest.raises(
        Exception, match=r"s3://pairs/sets/0\d\.tar: PermissionError: 403 said"
    ) as caught:
        next(loader)
    loader.close()
    assert isinstance(caught.value, StorageError)


FORKING_PROGRAM = """
import os, pickle, sys
source = pickle.loads(bytes.fromhex(sys.argv[1]))
expected = list(source.read_many(range(10)))  # the parent has connections and an event loop
child = os.fork()
if child == 0:
    os._exit(0 if list(source.read_many(range(10))) == expected else 1)
assert os.waitpid(child, 0)[1] == 0
assert list(source.read_many(range(10))) == expected
"""


@pytest.mark.slow
def test_a_forked_process_reads_too(store, tmp_path):
    put_shards(store, tmp_path)
    argument = pickle.dumps(open_source()).hex()
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", FORKING_PROGRAM, argument]
    subprocess.run(command, check=True, timeout=PATIENCE, env=environment)
