import dataclasses
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from groupvit_jax.data.images.decode import decode
from groupvit_jax.data.sources import counts as prepare_counts
from groupvit_jax.data.sources.pairs import make_source
from groupvit_jax.prepare import preparation as prepare_module
from groupvit_jax.prepare import writers
from groupvit_jax.prepare.preparation import Options, find_duplicates, make_shard, prepare
from groupvit_jax.prepare.runners import local_runner
from tests.data.shard_files import encode, write_pairs, write_tar
from tests.waiting import PATIENCE

RUN = local_runner(1)


@pytest.fixture
def options(tmp_path):
    """Nine images of a table, two captions each, in three shards."""
    images = tmp_path / "images"
    images.mkdir()
    rows = ["image,caption"]
    for i in range(9):
        (images / f"{i}.jpg").write_bytes(encode(value=20 * i))
        rows += [f"{i}.jpg,a dog {i}", f"{i}.jpg,red kites {i}"]
    (tmp_path / "a.csv").write_text("\n".join(rows))
    return Options(
        str(tmp_path / "a.csv"), str(tmp_path / "out"), images=str(images), samples_per_shard=3
    )


def hashes(folder: str) -> dict[str, str]:
    """Of the shards in a folder."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).iterdir())
        if path.name.endswith(".tar") or "array_record-" in path.name
    }


def source_of(options: Options):
    if options.format == "tfds":
        return make_source("x", {"kind": "tfds", "data_dir": options.output})
    return make_source("x", {"kind": "webdataset", "pattern": f"{options.output}/*.tar"})


@pytest.mark.parametrize("kind", writers.FORMATS)
def test_shards_hold_every_pair_in_order(options, kind):
    options = dataclasses.replace(options, format=kind)
    manifest = prepare(options, RUN)
    source = source_of(options)
    assert [source[i] for i in range(len(source))] == [
        {
            "image": encode(value=20 * i),
            "captions": [f"a dog {i}", f"red kites {i}"],
            "key": f"{i // 3:05d}{i % 3:06d}",
            "nouns": {
                "tagged_words": [["dog"], ["kites"]],
                "words": [["dog"], ["kites"]],
                "phrases": [["dog"], ["red kites"]],
            },
        }
        for i in range(9)
    ]
    assert {shard["file"]: shard["sha256"] for shard in manifest["shards"]} == hashes(
        options.output
    )
    assert manifest == json.loads(Path(options.output, "manifest.json").read_text())
    assert manifest["counts"] == {
        "read": {"images": 9, "captions": 18},
        "written": {"images": 9, "captions": 18},
        "dropped": {},
    }
    assert not Path(options.output, ".progress").exists()


@pytest.mark.parametrize("kind", writers.FORMATS)
def test_pixels_are_stored_and_a_stopped_run_goes_on(options, kind):
    options = dataclasses.replace(options, format=kind, encoding="pixels")
    manifest = prepare(options, RUN)
    assert manifest["counts"]["written"] == {"images": 9, "captions": 18}
    source = source_of(options)
    for i in range(9):
        sample = source[i]
        pixels = np.load(io.BytesIO(sample["image"]))
        np.testing.assert_array_equal(pixels, decode(encode(value=20 * i)))
        assert sample["captions"] == [f"a dog {i}", f"red kites {i}"]
    expected = hashes(options.output)
    Path(options.output, manifest["shards"][1]["file"]).unlink()
    prepare(options, RUN)
    assert hashes(options.output) == expected


def test_a_folder_begun_before_an_option_was_known_goes_on(options):
    prepare(options, RUN)
    manifest = Path(options.output, "manifest.json")
    content = json.loads(manifest.read_text())
    del content["options"]["encoding"]
    manifest.write_text(json.dumps(content))
    prepare(options, RUN)
    with pytest.raises(ValueError, match=r"--encoding=pixels: .*begun with --encoding=jpeg"):
        prepare(dataclasses.replace(options, encoding="pixels"), RUN)


def test_a_sample_keeps_what_its_json_said(tmp_path):
    fields = {"caption": "a dog", "url": "u", "original_width": 999, "width": 999, "key": "x"}
    fields |= {"nouns": 1, "tokens": {}}
    sample = {"jpg": encode(), "json": json.dumps(fields).encode()}
    (tmp_path / "cc3m").mkdir()
    pattern = write_tar(tmp_path / "cc3m" / "0.tar", [("deep/path.x/0", sample)])
    options = Options(pattern, str(tmp_path / "out"), tokenizer="clip")
    prepare(options, RUN)
    source = source_of(options)
    assert source[0]["key"] == "00000000000"
    written = Path(options.output, "00000.tar").read_bytes()
    found = json.loads(written[written.index(b'{"width') :].split(b"\0")[0])
    assert source[0]["tokens"] == found["tokens"]
    assert found.pop("tokens")["ids"] == [[49406, 320, 1929, 49407]]
    assert found == {
        "width": 12,
        "height": 8,
        "original_width": 999,
        "original_height": 8,
        "caption": "a dog",
        "captions": ["a dog"],
        "url": "u",
        "key": "00000000000",
        "source": "cc3m/0.tar: deep/path.x/0",
        "nouns": {"tagged_words": [["dog"]], "words": [["dog"]], "phrases": [["dog"]]},
    }


@pytest.mark.parametrize("kind", writers.FORMATS)
def test_what_can_not_be_used_is_dropped_counted_and_named(options, caplog, kind):
    images = Path(options.images)
    (images / "0.jpg").write_bytes(encode()[:100])
    (images / "1.jpg").unlink()
    (images / "2.jpg").write_bytes(encode(height=4))
    with open(options.input, "a") as file:
        file.write("\n3.jpg, \n")
        file.write("9.jpg,\n")
    (images / "9.jpg").write_bytes(encode())
    options = dataclasses.replace(options, format=kind)
    manifest = prepare(options, RUN)
    assert manifest["counts"] == {
        "read": {"images": 10, "captions": 20},
        "written": {"images": 6, "captions": 12},
        "dropped": {
            "blank caption": {"images": 0, "captions": 1},
            "broken image": {
                "images": 1,
                "captions": 2,
                "examples": ["0.jpg: truncated JPEG: no scan"],
            },
            "no caption": {"images": 1, "captions": 1, "examples": ["9.jpg"]},
            "smaller than 8 pixels": {
                "images": 1,
                "captions": 2,
                "examples": ["2.jpg: 4x12 pixels (height x width), expected at least 8"],
            },
            "unreadable file": {
                "images": 1,
                "captions": 2,
                "examples": ["1.jpg: No such file or directory"],
            },
        },
    }
    assert "Dropped 1.jpg: unreadable file (No such file or directory)" in caplog.text
    # A shard of which nothing is left is there all the same, and harms nobody.
    assert [shard["written"]["images"] for shard in manifest["shards"]] == [0, 3, 3, 0]
    source = source_of(options)
    assert [source[i]["captions"][0] for i in range(len(source))] == [
        f"a dog {i}" for i in range(3, 9)
    ]


def test_counts_are_printed_and_have_to_add_up(options):
    Path(options.images, "4.jpg").unlink()
    counts = prepare(options, RUN)["counts"]
    assert prepare_counts.table(counts).splitlines() == [
        "                                images      captions",
        "read                                 9            18",
        "written                              8            16",
        "dropped: unreadable file             1             2",
    ]
    counts["written"]["images"] = 9
    with pytest.raises(ValueError, match="don't add up"):
        prepare_counts.add_up([counts])


def test_members_of_tars_are_all_accounted_for(tmp_path):
    samples = [(str(i), {"jpg": encode(value=i), "txt": b"a"}) for i in range(3)]
    samples += [("2", {"jpg": encode(), "txt": b"b"}), ("3", {"jpg": encode()})]
    samples += [("4", {"input.jpg": encode(), "cls": b"4"}), ("0", {"jpg": b"?", "txt": b"a"})]
    write_tar(tmp_path / "0.tar", samples)
    counts = prepare(Options(f"{tmp_path}/0.tar", str(tmp_path / "out")), RUN)["counts"]
    lines = prepare_counts.table(counts).splitlines()
    assert [re.sub(" +", " ", line) for line in lines] == [
        " images captions files",
        "read 6 5 13",
        "written 3 3 6",
        "dropped: broken image 1 1 2",
        "dropped: no caption 1 0 1",
        "unmatched: repeated key 1 1 2 2.jpg, 2.txt",
        "unmatched: ending that is not read 0 0 2 4.input.jpg, 4.cls",
    ]


@pytest.mark.parametrize(
    ("samples", "found"),
    [
        (
            [("0", {"jpg": b"-", "cls": b"1"})],
            r"1 x no caption \(.*: 0\), 1 x ending.*0\.cls",
        ),
        ([("0", {"input.jpg": b"-", "output.txt": b"-"})], r"2 x ending that is not read"),
        ([], "nothing$"),
    ],
)
def test_nothing_written_is_an_error_that_names_what_was_found(tmp_path, samples, found):
    write_tar(tmp_path / "0.tar", samples)
    options = Options(f"{tmp_path}/0.tar", str(tmp_path / "out"))
    with pytest.raises(ValueError, match=f"nothing written; found: {found}"):
        prepare(options, RUN)
    write_pairs(tmp_path / "0.tar", range(3))
    assert prepare(options, RUN)["counts"]["written"]["images"] == 3  # the folder serves again


# Duplicates


@pytest.mark.parametrize(("mode", "kept"), [("keep", 4), ("pair", 3), ("image", 2)])
def test_duplicates_across_shards(tmp_path, mode, kept):
    pairs = [(1, "one"), (2, "two"), (1, "one"), (1, "three")]
    for number, (value, caption) in enumerate(pairs):
        sample = {"jpg": encode(value=value), "txt": caption.encode()}
        write_tar(tmp_path / f"{number}.tar", [("0", sample)])
    options = Options(f"{tmp_path}/*.tar", str(tmp_path / "out"), duplicates=mode)
    counts = prepare(options, RUN)["counts"]
    assert counts["written"]["images"] == kept
    assert counts["dropped"].get("duplicate", {"images": 0})["images"] == 4 - kept
    source = source_of(options)
    assert [source[i]["captions"] for i in range(2)] == [["one"], ["two"]]


def test_the_first_of_equal_hashes_stays():
    rows = np.array([[5, 1], [0, 0], [5, 1], [5, 2], [0, 0], [4, 1], [5, 1]], np.uint64)
    assert find_duplicates(rows).tolist() == [False, False, True, False, False, False, True]
    assert find_duplicates(rows[:0]).tolist() == []


# Going on


@pytest.mark.parametrize("kind", writers.FORMATS)
def test_an_interrupted_run_goes_on_to_the_same_shards(options, kind):
    options = dataclasses.replace(options, format=kind)
    prepare(options, RUN, num_workers=6)  # two threads for each shard
    expected = hashes(options.output)
    again = dataclasses.replace(options, output=options.output + "2")

    def stop_behind_the_first(function, tasks):
        RUN(function, tasks[:1] if function is make_shard else tasks)
        if function is make_shard:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(again, stop_behind_the_first)
    [first] = hashes(again.output)
    made = os.stat(Path(again.output, first)).st_mtime_ns
    Path(again.output, f"{first}.incomplete-0").write_bytes(b"of a killed worker")
    prepare(again, RUN)
    assert hashes(again.output) == expected
    assert os.stat(Path(again.output, first)).st_mtime_ns == made
    assert not list(Path(again.output).glob("*incomplete*"))


def test_a_finished_folder_is_left_as_it_is_and_repaired(options):
    manifest = prepare(options, RUN)
    expected = hashes(options.output)
    before = {path: os.stat(path).st_mtime_ns for path in Path(options.output).iterdir()}
    shutil.rmtree(options.images)  # nothing is read again
    assert prepare(options, RUN, verify=True) == manifest
    assert {path: os.stat(path).st_mtime_ns for path in Path(options.output).iterdir()} == before
    os.mkdir(options.images)
    for i in range(9):
        Path(options.images, f"{i}.jpg").write_bytes(encode(value=20 * i))
    Path(options.output, "00001.tar").unlink()
    os.truncate(Path(options.output, "00002.tar"), 100)
    assert prepare(options, RUN) == manifest
    assert hashes(options.output) == expected


def test_changed_bytes_are_found_when_asked_for(options, caplog):
    prepare(options, RUN)
    expected = hashes(options.output)
    shard = Path(options.output, "00001.tar")
    shard.write_bytes(bytes(shard.stat().st_size))
    prepare(options, RUN)
    assert hashes(options.output) != expected
    prepare(options, RUN, verify=True)
    assert hashes(options.output) == expected
    assert "00001.tar: its sha256 is not the recorded one; made anew" in caplog.text


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("name", "value"), [("jpeg_quality", 80), ("duplicates", "keep"), ("tokenizer", "clip")]
)
def test_other_options_in_the_same_folder_are_an_error(options, name, value, finished):
    if finished:
        prepare(options, RUN)
    else:
        with pytest.raises(KeyError):
            prepare(options, lambda function, tasks: {}["died"])
    changed = dataclasses.replace(options, **{name: value})
    with pytest.raises(ValueError, match=f"--{name}={value}: .*begun with --{name}=.*another"):
        prepare(changed, RUN)


def test_changed_input_is_an_error(options):
    prepare(options, RUN)
    with open(options.input, "a") as file:
        file.write("\n0.jpg,more\n")
    with pytest.raises(ValueError, match=r"--input=.*a\.csv: has changed since"):
        prepare(options, RUN)


def test_other_versions_of_the_libraries_are_told(options, monkeypatch, caplog):
    prepare(options, RUN)
    prepare(options, RUN)
    assert "may differ" not in caplog.text
    monkeypatch.setattr(prepare_module.importlib.metadata, "version", lambda name: "0")
    prepare(options, RUN)
    assert "shards made now, with {'array_record': '0'" in caplog.text


def test_a_folder_of_other_things_is_refused(options):
    os.mkdir(options.output)
    Path(options.output, "00000.tar").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"--output=.*holds files but no manifest\.json"):
        prepare(options, RUN)
    assert Path(options.output, "00000.tar").read_bytes() == b"mine"


def test_a_pattern_of_shards_is_no_folder(options):
    with pytest.raises(ValueError, match=r"--output=.*expected a folder"):
        prepare(dataclasses.replace(options, output="shards/{:05d}.tar"), RUN)


def test_s3_where_tensorflow_takes_the_place_of_s3fs_is_one_sentence(options, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "tensorflow")
    with pytest.raises(ValueError, match=r"--output=s3://b/x: expected gs:// or a folder, or an"):
        prepare(dataclasses.replace(options, output="s3://b/x"), RUN)


BUCKET = """
import sys
from importlib.machinery import PathFinder

find = PathFinder.find_spec  # where TensorFlow is installed, its file system would be taken
PathFinder.find_spec = classmethod(
    lambda cls, name, *args: None if name.split(".")[0] == "tensorflow" else find(name, *args)
)
import fsspec
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

class Bucket(MemoryFileSystem):
    def __init__(self, **options):
        super().__init__()

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.removeprefix("gs://"))

fsspec.register_implementation("gcs", Bucket, clobber=True)
epath.Path("gs://bucket/in").mkdir(parents=True)
epath.Path("gs://bucket/in/0.tar").write_bytes(open(sys.argv[1], "rb").read())

from groupvit_jax.prepare.preparation import Options, prepare
from groupvit_jax.prepare.runners import local_runner

options = Options("gs://bucket/in/*.tar", "gs://bucket/out", format=sys.argv[2])
manifest = prepare(options, local_runner(1))
assert prepare(options, local_runner(1), verify=True) == manifest
names = [path.name for path in epath.Path(options.output).iterdir()]
assert not [name for name in names if "incomplete" in name], names
print(manifest["shards"][0]["sha256"])
"""


@pytest.mark.parametrize("kind", writers.FORMATS)
def test_buckets_hold_the_same_shards(tmp_path, kind):
    (tmp_path / "in").mkdir()
    tar = write_pairs(tmp_path / "in" / "0.tar", range(5))
    options = Options(tar, str(tmp_path / "out"), format=kind)
    expected = prepare(options, RUN)["shards"][0]["sha256"]
    command = [sys.executable, "-c", BUCKET, tar, kind]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == expected
