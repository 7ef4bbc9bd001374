import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from groupvit_jax.prepare import inputs
from groupvit_jax.prepare.inputs import Item
from tests.data.shard_files import encode, write_pairs, write_tar
from tests.data.sources.test_pairs import build


def read_all(tmp_path, pattern, images="", columns=("", ""), items_per_chunk=2) -> list[list[Item]]:
    chunks = inputs.plan(str(pattern), str(images), columns, items_per_chunk, tmp_path)
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    return [list(inputs.read(chunk)) for chunk in chunks]


def test_a_tar_is_a_chunk_and_its_json_is_kept(tmp_path):
    sample = {
        "jpg": encode(),
        "json": json.dumps({"captions": [" two ", "", 3], "url": "u"}).encode(),
    }
    write_pairs(tmp_path / "0.tar", range(3))
    write_tar(tmp_path / "1.tar", [("../../x", sample)])
    first, second = read_all(tmp_path, tmp_path / "*.tar")
    assert [item.captions for item in first] == [["caption 0"], ["caption 1"], ["caption 2"]]
    [item] = second
    assert item.image == encode()
    assert (item.captions, item.num_captions, item.problem) == (["two"], 3, "")
    assert item.metadata["url"] == "u"


@pytest.mark.parametrize(
    ("sample", "problem"),
    [
        ({"jpg": b"-", "txt": b"  "}, "no caption"),
        ({"txt": b"a"}, "no image"),
        ({"jpg": b"", "txt": b"a"}, "no image"),
        ({"jpg": b"-"}, "no caption"),
        ({"jpg": b"-", "json": b"{"}, "broken sample"),
        ({"jpg": b"-", "json": b"[" * 100_000}, "broken sample"),
    ],
)
def test_unusable_samples_of_a_tar(tmp_path, sample, problem):
    write_tar(tmp_path / "0.tar", [("0", sample)])
    [[item]] = read_all(tmp_path, tmp_path / "0.tar")
    assert item.problem == problem


def test_a_tar_that_breaks_off_counts_once_more(tmp_path):
    path = Path(write_pairs(tmp_path / "0.tar", range(3)))
    path.write_bytes(path.read_bytes()[:3500])
    [items] = read_all(tmp_path, path)
    assert items[-1].problem == "lost where a tar breaks off"
    assert items[0].captions == ["caption 0"]
    path.write_bytes(b"nothing like a tar" * 100)
    [[item]] = read_all(tmp_path, path)
    assert item.problem == "lost where a tar breaks off"


def test_lone_surrogates_are_replaced(tmp_path):
    fields = b'{"caption": "a \\ud800 b"}'
    write_tar(tmp_path / "0.tar", [("0", {"jpg": encode(), "json": fields})])
    [[item]] = read_all(tmp_path, tmp_path / "0.tar")
    assert item.captions == ["a \ufffd b"]


def write_parquet(path: Path, **columns) -> Path:
    parquet.write_table(pyarrow.table(columns), path)
    return path


def test_parquet_of_img2dataset(tmp_path):
    (tmp_path / "cc3m").mkdir()
    path = write_parquet(
        tmp_path / "cc3m" / "00000.parquet",
        url=["u", "v", "w"],
        key=["0", "1", "2"],
        status=["success", "failed_to_download", "success"],
        caption=["one", "two", None],
        jpg=[b"a", None, b"c"],
        exif=[b"x", None, b"x"],
        similarity=[float("nan"), 0.5, 0.5],
    )
    [items] = read_all(tmp_path, path)
    assert [(i.image, i.captions, i.problem) for i in items] == [
        (b"a", ["one"], ""),
        (None, ["two"], "no image"),
        (b"c", [], "no caption"),
    ]
    assert items[0].metadata == {"url": "u", "key": "0", "status": "success"}
    assert items[1].source == "cc3m/00000.parquet: row 1"


def test_parquet_of_hugging_face(tmp_path):
    images = [{"bytes": b"a", "path": None}]
    path = write_parquet(tmp_path / "train.parquet", image=images, sentences=[["one", "two"]])
    [[item]] = read_all(tmp_path, path, columns=("", "sentences"))
    assert (item.image, item.captions) == (b"a", ["one", "two"])


def test_parquet_errors_name_file_and_flag(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", url=["u"], caption=["c"])
    with pytest.raises(ValueError, match=r"a\.parquet: columns.*--image_column"):
        read_all(tmp_path, path)
    path.write_bytes(b"PAR1" + bytes(50) + b"PAR1")
    with pytest.raises(ValueError, match=r"a\.parquet: can't be read"):
        read_all(tmp_path, path)


def test_a_table_is_cut_into_chunks(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.jpg").write_bytes(b"a")
    (images / "c.jpg").write_bytes(b"")
    (tmp_path / "a.csv").write_text(
        "image,caption\na.jpg,one\nb.jpg,two\na.jpg, \nc.jpg,four\nd\0.jpg,x\n"
    )
    chunks = read_all(tmp_path, tmp_path / "a.csv", images)
    assert [len(items) for items in chunks] == [2, 2]
    a, b, c, d = [item for items in chunks for item in items]
    assert a == Item("a.jpg", b"a", ["one"], 2, {"blank caption": 1})
    assert (b.problem, b.detail) == ("unreadable file", "No such file or directory")
    assert (c.problem, d.problem) == ("no image", "unreadable file")


@pytest.mark.parametrize(
    "pattern", ["{part0.csv,PART1.TSV}", "*.[ct]sv,*.TSV", "part0.csv,PART1.TSV"]
)
def test_patterns_of_tables(tmp_path, pattern, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("part0.csv").write_text(f"image,caption\n{tmp_path}/a.jpg,one\n")
    Path("PART1.TSV").write_text(f"image\tcaption\n{tmp_path}/a.jpg\ttwo\n")
    Path("a.jpg").write_bytes(b"a")
    [[item]] = read_all(tmp_path, pattern)  # absolute paths need no folder
    assert (item.image, item.captions) == (b"a", ["one", "two"])


@pytest.mark.parametrize(
    ("file", "detail"),
    [
        ("../outside.jpg", "outside of --images"),
        ("/etc/passwd", "outside of --images"),
        ("https://example.com/a.jpg", "a URL; fetch it with img2dataset"),
        ("pipe", "a folder, device or pipe"),
        ("none.jpg", "No such file"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_only_files_of_the_folder_are_packed(tmp_path, file, detail, kind):
    images = tmp_path / "images"
    images.mkdir()
    (tmp_path / "outside.jpg").write_bytes(b"a")
    (images / "a.jpg").write_bytes(b"a")
    os.mkfifo(images / "pipe")
    files = [file, "a.jpg", str(images / "a.jpg")]
    path = tmp_path / f"a.{kind}"
    if kind == "csv":
        path.write_text("image,caption\n" + "".join(f"{name},b\n" for name in files))
    else:
        write_parquet(path, image=[{"bytes": None, "path": f} for f in files], caption=["b"] * 3)
    first, *others = [i for items in read_all(tmp_path, path, images) for i in items]
    assert first.problem == "unreadable file"
    assert detail in first.detail
    assert [item.image for item in others] == [b"a", b"a"]


def test_a_tfds_set_is_cut_into_chunks(tmp_path):
    folder = build(tmp_path, "file").data_dir
    chunks = read_all(tmp_path, f"tfds:{folder}/train")
    assert [len(items) for items in chunks] == [2, 1]
    assert sorted(item.captions for items in chunks for item in items) == [
        [f"a {i}", f"b {i}"] for i in range(3)
    ]


def test_coco_captions_of_tfds_are_texts_with_ids(tmp_path):
    import tensorflow_datasets as tfds

    class TextsWithIds(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            caption = {"id": np.int64, "text": tfds.features.Text()}
            features = {"image": tfds.features.Image(), "captions": tfds.features.Sequence(caption)}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            captions = [{"id": 1, "text": "one"}, {"id": 2, "text": "two"}]
            yield 0, {"image": io.BytesIO(encode(".png")), "captions": captions}

    builder = TextsWithIds(data_dir=str(tmp_path / "data"), file_format="array_record")
    builder.download_and_prepare()
    [[item]] = read_all(tmp_path, f"tfds:{builder.data_dir}/train")
    assert item.captions == ["one", "two"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("none/*.tar", "no file matches"),
        ("file.zip", r"file\.zip: expected tar, parquet"),
        ("tfds:train", "expected tfds:NAME/SPLIT"),
        ("tfds:no_such_set/train", "--input.*no_such_set"),
        ("a.csv", "--images=.*expected the folder"),
        ("{a.csv,0.tar}", "tables among other files"),
        ("0.tar.gz", "does not exist"),
        ("/dev/zero", "/dev/zero is a device or a pipe"),
        ("pipe.csv", "pipe.csv is a device or a pipe"),
    ],
)
def test_wrong_input_is_refused(tmp_path, monkeypatch, pattern, message):
    monkeypatch.chdir(tmp_path)
    Path("file.zip").write_bytes(b"")
    Path("a.csv").write_text("image,caption\na.jpg,b\n")
    Path("0.tar").write_bytes(b"")
    os.mkfifo("pipe.csv")
    with pytest.raises((ValueError, OSError), match=message):
        read_all(tmp_path, pattern)


def test_empty_table_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("image,caption\n")
    with pytest.raises(ValueError, match=r"--input=.*a\.csv: no image"):
        read_all(tmp_path, tmp_path / "a.csv", tmp_path)


def test_fingerprint_changes_with_the_input(tmp_path):
    write_pairs(tmp_path / "0.tar", range(3))
    (tmp_path / "a.csv").write_text("image,caption\na.jpg,one\n")
    patterns = [str(tmp_path / "*.tar"), str(tmp_path / "a.csv")]
    before = [inputs.fingerprint(pattern) for pattern in patterns]
    assert before == [inputs.fingerprint(pattern) for pattern in patterns]
    write_pairs(tmp_path / "1.tar", range(3))
    (tmp_path / "a.csv").write_text("image,caption\na.jpg,two\n")
    after = [inputs.fingerprint(pattern) for pattern in patterns]
    assert len({*before, *after}) == 4
