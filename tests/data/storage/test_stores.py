"""Reading and writing objects, on servers of both APIs: S3 and Google Cloud Storage."""

import random
import threading

import pytest

from groupvit_jax.data.storage import objects
from groupvit_jax.data.storage.objects import Range
from groupvit_jax.data.storage.retries import StorageError
from tests.data import object_store, quick_retries


@pytest.fixture(scope="module", params=["s3", "gs"])
def served(request):
    with object_store.serve(request.param) as store:
        yield store


@pytest.fixture
def store(served):
    served.clear()
    with quick_retries.patched():
        yield served


def fails_now_and_then(share=0.3):
    rng, lock = random.Random(0), threading.Lock()

    def fault(method, path):
        with lock:
            return rng.choice(["503", "cut", "refuse"]) if rng.random() < share else None

    return fault


SMALL = {
    "config.json": b'{"a": 1}',
    "a/empty": b"",
    "a/b/lines.txt": b"\r\n--==0==\n\n\r",
    "a/b/ends with a carriage return": random.Random(1).randbytes(3000) + b"\r",
}


@pytest.mark.parametrize(
    ("contents", "share"),
    [(SMALL, 0.3), ({"in parts": random.Random(2).randbytes(9 * 2**20)}, 0)],
)
def test_files_come_back_as_they_were_sent(store, tmp_path, contents, share):
    store.fault = fails_now_and_then(share)
    file, copy = tmp_path / "file", tmp_path / "copy"
    for name, content in contents.items():
        file.write_bytes(content)
        objects.upload(file, f"{store.root}/run/{name}")
    found = objects.find_objects(f"{store.root}/run/")
    assert {name: stored.size for name, stored in found.items()} == {
        name: len(content) for name, content in contents.items()
    }
    for name, stored in found.items():
        objects.download(stored, copy)
        assert copy.read_bytes() == contents[name]


def test_folders_are_listed(store):
    for name in ("a/1.tar", "a/2.tar", "a/b/3.tar", "ab/4.tar"):
        store.put(name, name.encode())
    root = store.root
    assert objects.expand_glob(f"{root}/a/*.tar") == [f"{root}/a/1.tar", f"{root}/a/2.tar"]
    assert sorted(objects.list_folder(f"{root}/a")) == ["1.tar", "2.tar"]
    assert sorted(objects.find_objects(f"{root}/a")) == ["1.tar", "2.tar", "b/3.tar"]
    assert objects.find_objects(f"{root}/none") == {}


def test_listings_are_never_old(store):
    for content in (b"one", b"other"):
        store.put("a/x", content)
        [old] = objects.find_objects(f"{store.root}/a").values()
        assert old.size == len(content)
        assert objects.describe([f"{store.root}/a/x"]) == [old]
    store.delete("a/x")
    assert objects.find_objects(f"{store.root}/a") == {}


def test_parts_of_objects_are_read(store):
    content = bytes(range(256)) * 40
    [stored] = objects.describe([store.put("a", content)])
    store.fault = fails_now_and_then()
    ranges = [Range(stored, 7 * i, 100) for i in range(30)]
    assert objects.read_ranges(ranges) == [content[r.offset : r.offset + 100] for r in ranges]


def test_one_of_several_writers_creates_an_object(store):
    url = f"{store.root}/run-1.lock"
    created = []

    def create(number):
        if objects.create_object(url, f"writer {number}".encode()):
            created.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert objects.read_objects([url]) == [f"writer {created[0]}".encode()]
    assert len(created) == 1


def test_an_object_is_created_also_if_the_answer_is_lost(store):
    store.fault = store.first(1, "cut", "PUT")
    assert objects.create_object(f"{store.root}/run-1.lock", b"this writer")
    assert not objects.create_object(f"{store.root}/run-1.lock", b"another")


def test_objects_are_read_rewritten_and_deleted(store):
    urls = [f"{store.root}/{name}" for name in "ab"]
    for content in (b"one", b"two"):
        objects.write_object(urls[0], content)
        assert objects.read_objects(urls) == [content, None]
    objects.delete_objects(urls)
    assert objects.read_objects(urls) == [None, None]


def test_objects_are_copied_within_the_store(store):
    names = {"config.json": b"{}", "a/b c": bytes(1000), "empty": b""}
    pairs = {f"{store.root}/{name}": f"{store.root}/to/{name}" for name in names}
    for name, content in names.items():
        objects.write_object(f"{store.root}/{name}", content)
    store.fault = store.first(1, "503", "PUT")
    objects.copy_objects(pairs)
    assert objects.read_objects(list(pairs.values())) == list(names.values())
    assert store.reads("config.json") == 0


def test_what_is_forbidden_or_missing_is_said_at_once(store):
    url = store.put("a", b"1")
    with pytest.raises(StorageError, match=f"{store.root}/b: FileNotFoundError"):
        objects.describe([f"{store.root}/b"])
    store.fault = lambda method, path: "403"
    store.requests.clear()
    with pytest.raises(StorageError, match=f"{url}: .*403 said"):
        objects.write_object(url, b"2")
    assert len(store.requests) == 1
