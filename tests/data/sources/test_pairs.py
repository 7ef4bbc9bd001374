import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from groupvit_jax.data.images.decode import decode
from groupvit_jax.data.sources import pairs, tar_index, tar_scan
from groupvit_jax.data.sources.pairs import (
    TfdsSource,
    WebDatasetSource,
    make_source,
)
from groupvit_jax.data.sources.patterns import expand_pattern
from groupvit_jax.data.sources.samples import BrokenSampleError
from tests.data.shard_files import encode, pair, write_pairs, write_tar
from tests.waiting import PATIENCE


@pytest.fixture(autouse=True)
def _user_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user_cache"))


def open_tar(tmp_path: Path, samples, **options) -> WebDatasetSource:
    return WebDatasetSource([write_tar(tmp_path / "shard.tar", samples, **options)])


def captions_of(source) -> list[list[str]]:
    return [source[i]["captions"] for i in range(len(source))]


# Patterns


def test_pattern_expands_braces_globs_and_lists(tmp_path):
    names = ["a-0008.tar", "a-0009.tar", "a-0010.tar", "b1.tar", "b2.tar", "c.tar"]
    for name in names:
        (tmp_path / name).touch()
    pattern = f"{tmp_path}/a-{{0008..0010}}.tar, {tmp_path}/b*.tar,{tmp_path}/{{c,b1}}.tar"
    found = [os.path.basename(path) for path in expand_pattern(pattern, "field")]
    assert found == [*names, "b1.tar"]


@pytest.mark.parametrize("pattern", ["{tmp}/*.tar", "{tmp}/{{0..3}}.tar", "{tmp}/x.tar", ""])
def test_pattern_that_matches_nothing_names_the_field(tmp_path, pattern):
    (tmp_path / "1.tar").mkdir()
    pattern = pattern.format(tmp=tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"config\.data\.sources\.cc3m\.pattern="):
        make_source("cc3m", {"kind": "webdataset", "pattern": pattern})


def test_missing_shard_of_a_range_is_named(tmp_path):
    write_pairs(tmp_path / "0.tar", [0])
    with pytest.raises(FileNotFoundError, match=r"1\.tar does not exist \(nor do 1 others\)"):
        expand_pattern(f"{tmp_path}/{{0..2}}.tar", "field")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{0..999999999999}.tar", "more than 262,144 files"),
        ("{a,b}" * 20 + ".tar", "more than 262,144 files"),
        ("{a,b}" * 2000 + ".tar", "more than 20 braces"),
    ],
)
def test_patterns_of_too_many_files_are_refused(pattern, message):
    with pytest.raises(ValueError, match=message):
        expand_pattern(pattern, "field")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "zip"}, r"sources\.x\.kind='zip'"),
        ({"kind": "webdataset", "patern": "a.tar"}, r"sources\.x\.patern: unknown"),
    ],
)
def test_wrong_fields_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        make_source("x", config)


# Samples


def test_reads_images_captions_and_keys(tmp_path):
    source = open_tar(tmp_path, [("00000", pair(7)), ("00001", pair(9))])
    assert len(source) == 2
    assert source[1]["key"] == "00001"
    assert source[1]["captions"] == ["caption 9"]
    assert np.all(abs(decode(source[1]["image"]).astype(int) - 9) <= 1)
    assert source.locate(1) == f"{tmp_path}/shard.tar: 00001"


def test_captions_prefer_the_list_then_the_text_then_the_json(tmp_path):
    image = encode()
    both = json.dumps({"captions": ["a", " ", "b\n"], "caption": "c"}).encode()
    single = json.dumps({"caption": "c"}).encode()
    source = open_tar(
        tmp_path,
        [
            ("list", {"jpg": image, "txt": b"text", "json": both}),
            ("text", {"json": single, "jpg": image, "txt": b" text\n"}),
            ("json", {"jpg": image, "json": single}),
        ],
    )
    assert captions_of(source) == [["a", "b"], ["text"], ["c"]]


def test_captions_in_other_encodings_are_read(tmp_path):
    texts = [b"\xef\xbb\xbfa dog", "a dög".encode("utf-16"), b"caf\xe9"]
    source = open_tar(tmp_path, [(str(i), {"jpg": b"-", "txt": t}) for i, t in enumerate(texts)])
    assert captions_of(source) == [["a dog"], ["a dög"], ["caf\ufffd"]]


@pytest.mark.parametrize("extension", [*tar_scan.IMAGE_EXTENSIONS, "JPG", "Jpeg"])
def test_reads_image_formats(tmp_path, extension):
    image = encode()
    source = open_tar(tmp_path, [("a", {extension: image, "txt": b"x"})])
    assert source[0]["image"] == image


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_reads_long_and_foreign_names(tmp_path, format):
    key = "é" * 80 + "/" + "k" * 120
    source = open_tar(tmp_path, [("a", pair(0)), (key, pair(1)), ("z", pair(2))], format=format)
    assert [source[i]["key"] for i in range(3)] == ["a", key, "z"]
    assert captions_of(source) == [["caption 0"], ["caption 1"], ["caption 2"]]


def test_ignores_other_members_links_and_folders(tmp_path):
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in [("sub", tarfile.DIRTYPE), ("sub/0.txt", tarfile.SYMTYPE)]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        for name, data in [("sub/0.jpg", encode()), ("sub/0.npy", b"?"), ("sub/0.json", b"{}")]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    source = WebDatasetSource([str(path)])
    assert len(source) == 1
    with pytest.raises(BrokenSampleError, match="no caption"):
        source[0]


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        ({"jpg": b"?"}, "no caption"),
        ({"txt": b"a"}, "no image"),
        ({"jpg": b"?", "txt": b" \n"}, "empty caption"),
        ({"jpg": b"?", "json": b'{"captions": []}'}, "empty caption"),
        ({"jpg": b"?", "json": b'{"caption": null}'}, "empty caption"),
        ({"jpg": b"?", "json": b"{", "txt": b"a"}, "JSON can't be parsed"),
        ({"jpg": b"?", "json": b"[]", "txt": b"a"}, "not an object"),
        ({"jpg": b"?", "json": b"[" * 100_000, "txt": b"a"}, "JSON can't be parsed"),
        ({"jpg": b"?", "json": b" " * 2**23}, "JSON of 8388608 bytes"),
        ({"jpg": b"?", "txt": b"a" * 2**23}, "text of 8388608 bytes"),
        ({"jpg": b"?", "txt": b"a" * 20_000}, "caption of more than 16384"),
    ],
)
def test_unusable_samples_say_why(tmp_path, contents, reason):
    source = open_tar(tmp_path, [("good", pair(0)), ("bad", contents)])
    assert source[0]["captions"] == ["caption 0"]
    with pytest.raises(BrokenSampleError, match=reason):
        source[1]


def test_absurd_sizes_are_refused_before_reading(tmp_path, monkeypatch):
    source = open_tar(tmp_path, [("a", pair(0)), ("b", {"jpg": bytes(9000), "txt": b"x"})])
    monkeypatch.setattr(pairs, "MAX_SAMPLE_BYTES", 8000)
    monkeypatch.setattr(os, "pread", None)
    with pytest.raises(BrokenSampleError, match="more than the limit of 8000"):
        source[1]


def test_several_shards_are_joined_in_order(tmp_path):
    bounds = [(0, 3), (3, 3), (3, 8)]
    shards = [write_pairs(tmp_path / f"{i}.tar", range(*b)) for i, b in enumerate(bounds)]
    source = WebDatasetSource(shards)
    assert captions_of(source) == [[f"caption {i}"] for i in range(8)]
    for index in (-1, 8):
        with pytest.raises(IndexError):
            source[index]


def test_pickles_small_and_reads_the_same(tmp_path):
    source = WebDatasetSource([write_pairs(tmp_path / "shard.tar", range(300))])
    source[0]
    pickled = pickle.dumps(source)
    assert len(pickled) < 1000
    assert pickle.loads(pickled)[299] == source[299]


# Index


def test_index_is_built_once_and_again_when_the_shard_changes(tmp_path, monkeypatch):
    path = tmp_path / "shard.tar"
    WebDatasetSource([write_pairs(path, range(3))])
    scan = tar_index.scan
    monkeypatch.setattr(tar_index, "scan", None)
    assert len(WebDatasetSource([str(path)])) == 3
    monkeypatch.setattr(tar_index, "scan", scan)
    write_pairs(path, range(10, 15))
    assert captions_of(WebDatasetSource([str(path)])) == [[f"caption {i}"] for i in range(10, 15)]
    assert len(list((tmp_path / ".groupvit_index").iterdir())) == 1


def test_touched_shard_is_scanned_anew(tmp_path, monkeypatch):
    path = write_pairs(tmp_path / "shard.tar", range(3))
    WebDatasetSource([path])
    os.utime(path, (time.time() + 5, time.time() + 5))
    scanned = []
    scan = tar_index.scan
    monkeypatch.setattr(tar_index, "scan", lambda shard: scanned.append(shard) or scan(shard))
    WebDatasetSource([path])
    assert scanned == [path]


def test_index_never_vanishes_where_two_processes_build_it(tmp_path, monkeypatch):
    """The other has written it when this one has scanned the shard, and opens it at any time."""
    path = write_pairs(tmp_path / "shard.tar", range(3))
    [file] = tar_index.load_indices([path])
    write = tar_index._write

    def write_beside_the_other(target, save):
        assert file.exists()
        write(target, save)

    monkeypatch.setattr(tar_index, "_find_cached", lambda *_: None)  # looked before it was there
    monkeypatch.setattr(tar_index, "_write", write_beside_the_other)
    assert tar_index.load_indices([path]) == [file]
    assert file.exists()


def test_threads_parse_one_header_at_a_time(tmp_path, monkeypatch):
    shards = [write_tar(tmp_path / f"{i}.tar", [("k", pair(i))]) for i in range(8)]
    files = tar_index.load_indices(shards)
    parsing = threading.Lock()

    def load(file, **options):
        assert parsing.acquire(blocking=False), "two threads at once"
        time.sleep(0.01)
        parsing.release()
        return np.lib.format.open_memmap(file)

    monkeypatch.setattr(np, "load", load)
    with ThreadPoolExecutor(8) as threads:
        assert [len(index) for index in threads.map(tar_index.open_index, files)] == [1] * 8


def test_corrupt_index_is_built_anew(tmp_path, caplog):
    path = write_pairs(tmp_path / "shard.tar", range(3))
    [file] = tar_index.load_indices([path])
    file.write_bytes(file.read_bytes()[:40])
    assert len(WebDatasetSource([path])) == 3
    assert "unreadable tar index" in caplog.text


def test_index_dir_is_used(tmp_path):
    first = write_pairs(tmp_path / "shard.tar", range(3))
    (tmp_path / "other").mkdir()
    second = write_pairs(tmp_path / "other" / "shard.tar", range(2))
    files = tar_index.load_indices([first, second], str(tmp_path / "index"))
    assert [len(np.load(file)) for file in files] == [3, 2]
    assert all(tmp_path / "index" in file.parents for file in files)
    assert not (tmp_path / ".groupvit_index").exists()


def test_index_falls_back_to_the_user_cache(tmp_path, caplog, monkeypatch):
    path = write_pairs(tmp_path / "shard.tar", range(3))
    (tmp_path / ".groupvit_index").write_text("a file where the folder should be")
    assert len(WebDatasetSource([path])) == 3
    assert [r.getMessage() for r in caplog.records if "are cached in" in r.getMessage()]
    monkeypatch.setattr(tar_index, "scan", None)
    assert len(WebDatasetSource([path])) == 3


def test_processes_index_like_one(tmp_path):
    shards = [write_pairs(tmp_path / f"{i}.tar", range(i, 2 * i + 1)) for i in range(8)]
    files = tar_index.load_indices(shards)
    for shard, file in zip(shards, files, strict=True):
        assert np.array_equal(np.load(file), tar_index.scan(shard).index)


# Truncated and corrupt shards


def test_truncated_tar_keeps_what_is_whole(tmp_path, caplog):
    whole = tmp_path / "whole.tar"
    write_pairs(whole, range(4))
    data = whole.read_bytes()
    ends = [int(entry["offset"][1] + entry["size"][1]) for entry in tar_scan.scan(str(whole)).index]
    for cut in (*range(ends[0], ends[-1], 300), ends[1], ends[-1]):
        shard = tmp_path / f"cut{cut}.tar"
        shard.write_bytes(data[:cut])
        caplog.clear()
        source = WebDatasetSource([str(shard)])
        readable = sum(end <= cut for end in ends)
        for i in range(len(source)):
            if i < readable:
                assert source[i]["captions"] == [f"caption {i}"]
            else:
                with pytest.raises(BrokenSampleError):
                    source[i]
        assert len(source) > readable, "what is lost must be counted"
        [message] = [
            r.getMessage() for r in caplog.records if "tar breaks off at" in r.getMessage()
        ]
        assert str(shard) in message
        assert message.endswith(f"of {cut}; samples kept before it: {readable}")


def test_whole_tar_has_no_break(tmp_path, caplog):
    assert len(WebDatasetSource([write_pairs(tmp_path / "shard.tar", range(4))])) == 4
    assert "breaks off" not in caplog.text


def test_cached_break_is_logged_again(tmp_path, caplog):
    path = tmp_path / "shard.tar"
    path.write_bytes(Path(write_pairs(tmp_path / "whole.tar", range(4))).read_bytes()[:4000])
    WebDatasetSource([str(path)])
    caplog.clear()
    WebDatasetSource([str(path)])
    assert "breaks off" in caplog.text


@pytest.mark.parametrize("damage", ["zeros", "noise", "negative size", "vast size"])
def test_corrupt_header_ends_the_shard(tmp_path, damage):
    path = Path(write_pairs(tmp_path / "shard.tar", range(4)))
    data = bytearray(path.read_bytes())
    header = int(tar_scan.scan(str(path)).index[2]["offset"][0]) - 512
    block = bytearray(data[header : header + 512])
    if damage == "zeros":
        block[:] = b"\1" + bytes(511)
    elif damage == "noise":
        block[:] = np.random.default_rng(0).bytes(512)
    else:
        block[124:136] = b"\xff" * 12 if damage == "negative size" else b"77777777777\0"
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
    data[header : header + 512] = block
    path.write_bytes(data)
    source = WebDatasetSource([str(path)])
    assert len(source) == 3
    assert [source[i]["captions"] for i in range(2)] == [["caption 0"], ["caption 1"]]
    with pytest.raises(BrokenSampleError, match="no image"):
        source[2]
    assert f"breaks off at byte {header}" in source.locate(2)


@pytest.mark.parametrize("content", [b"", b"not a tar" * 200, bytes(1024)])
def test_shards_without_any_sample_are_an_error(tmp_path, content):
    (tmp_path / "shard.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"sources\.x\.pattern: no pair in 1 shards"):
        make_source("x", {"kind": "webdataset", "pattern": f"{tmp_path}/shard.tar"})


def test_shard_that_shrank_after_indexing_is_broken(tmp_path):
    path = Path(write_pairs(tmp_path / "shard.tar", range(4)))
    source = WebDatasetSource([str(path)])
    os.truncate(path, 600)
    with pytest.raises(BrokenSampleError, match="shorter"):
        source[3]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"nouns": {"words": [["dog"], []]}}, {"nouns": {"words": [["dog"], []]}}),
        ({"nouns": ["dog"], "tokens": 5}, {}),  # somebody else's
        ({"nouns": {"words": [["dog"]]}}, r"the nouns\.words of its JSON"),
        ({"nouns": {"words": 5}}, r"the nouns\.words of its JSON"),
        ({"tokens": {"ids": ["dog", "cat"]}}, r"the tokens\.ids of its JSON"),
        ({"tokens": {}}, r"the tokens\.ids of its JSON"),
        ({"nouns": {"words": [["dog"], [1]]}}, r"the nouns\.words of its JSON hold other"),
        ({"tokens": {"ids": [[1], ["a"]]}}, r"the tokens\.ids of its JSON hold other"),
        ({"tokens": {"ids": [[1], []]}}, r"the tokens\.ids of its JSON are empty"),
        ({"tokens": {"ids": [[1], [2**40]]}}, r"the tokens\.ids .* no token ids"),
    ],
)
def test_nouns_and_tokens_come_with_the_captions(tmp_path, fields, expected):
    metadata = json.dumps({"captions": ["a dog", "x"], **fields}).encode()
    write_tar(tmp_path / "0.tar", [("0", {"jpg": b"-", "json": metadata})])
    source = WebDatasetSource([str(tmp_path / "0.tar")])
    if isinstance(expected, str):
        with pytest.raises(BrokenSampleError, match=expected):
            source[0]
    else:
        sample = {"image": b"-", "captions": ["a dog", "x"], "key": "0"}
        assert source[0] == sample | expected


# TFDS


class Pairs(tfds.core.GeneratorBasedBuilder):
    """Three pairs; the image as a file or as an array."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(map(tfds.core.BuilderConfig, ("file", "array", "no_text")))

    def _info(self):
        image = tfds.features.Image(shape=(None, None, 3))
        if self.builder_config.name == "array":
            image = tfds.features.Tensor(shape=(8, 12, 3), dtype=np.uint8)
        features = {"image": image, "mask": tfds.features.Image(shape=(None, None, 1))}
        if self.builder_config.name == "file":
            features["captions"] = tfds.features.Sequence(tfds.features.Text())
        if self.builder_config.name == "array":
            features |= {"caption": tfds.features.Text(), "id": tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(3):
            example = {
                "image": io.BytesIO(encode(".png", value=i)),
                "mask": io.BytesIO(encode(".png")),
            }
            if self.builder_config.name == "file":
                example["captions"] = [f"a {i}", "", f"b {i}"]
            if self.builder_config.name == "array":
                example |= {
                    "image": np.full((8, 12, 3), i, np.uint8),
                    "caption": f"c {i}",
                    "id": f"x{i}",
                }
            yield i, example


def build(tmp_path: Path, config: str) -> Pairs:
    builder = Pairs(data_dir=str(tmp_path), config=config, file_format="array_record")
    builder.download_and_prepare()
    return builder


def test_tfds_set_by_folder_and_by_name(tmp_path):
    folder = str(build(tmp_path, "file").data_dir)
    by_folder = make_source("x", {"kind": "tfds", "split": "train", "data_dir": folder})
    by_name = make_source("x", {"kind": "tfds", "name": "pairs/file", "data_dir": str(tmp_path)})
    for source in (by_folder, by_name, pickle.loads(pickle.dumps(by_folder))):
        assert len(source) == 3
        images = [source[i]["image"] for i in range(3)]
        values = [int(decode(image)[0, 0, 0]) for image in images]
        assert dict(zip(values, captions_of(source), strict=True)) == {
            i: [f"a {i}", f"b {i}"] for i in range(3)
        }
        assert source.locate(1) == "pairs/file/1.0.0/train: 1"


def test_tfds_images_as_arrays(tmp_path):
    folder = str(build(tmp_path, "array").data_dir)
    source = TfdsSource("", "train", folder)
    samples = [source[i] for i in range(3)]
    assert {s["key"]: s["captions"] for s in samples} == {f"x{i}": [f"c {i}"] for i in range(3)}
    assert {s["key"]: decode(s["image"]).mean() for s in samples} == {f"x{i}": i for i in range(3)}


def test_tfds_errors_name_the_field(tmp_path):
    folder = str(build(tmp_path, "no_text").data_dir)
    for config, message in [
        ({"data_dir": folder}, r"expected features image and caption"),
        ({"data_dir": folder, "split": "dev"}, "dev"),
        ({"data_dir": str(tmp_path), "name": "nothing"}, "nothing"),
    ]:
        with pytest.raises(ValueError, match=r"config\.data\.sources\.y.*" + message):
            make_source("y", {"kind": "tfds", **config})


def test_tfds_is_read_where_tensorflow_is_not_installed(tmp_path):
    folder = str(build(tmp_path, "file").data_dir)
    program = f"""
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = classmethod(
    lambda cls, name, *args: None if name.split(".")[0] == "tensorflow" else find(name, *args)
)
from groupvit_jax.data.sources.pairs import TfdsSource
source = TfdsSource("", "train", {folder!r})
assert sum(len(source[i]["captions"]) for i in range(len(source))) == 6
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE)
