import json
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg

from groupvit_jax.data import shards
from groupvit_jax.data.decode import BrokenImageError, decode
from groupvit_jax.data.shards import Item, encode_image, read_captions, write_shards
from groupvit_jax.data.sources import WebDatasetSource
from tests.data.shard_files import encode

# EXIF with orientation 6: turn a quarter clockwise to see it upright.
EXIF_ORIENTATION_6 = (
    b"\xff\xe1\x00\x22Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
)


# Captions


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'image,caption\na.jpg,"one, two"\nb.jpg,three\na.jpg,four\n'),
        ("a.tsv", "filepath\ttitle\na.jpg\tone, two\nb.jpg\tthree\na.jpg\tfour\n"),
        ("a.txt", "number|comment|file_name\n0|one, two|a.jpg\n1|three|b.jpg\n2|four|a.jpg\n"),
        ("a.csv", '\ufeffImage, Caption\r\na.jpg,"one, two"\r\nb.jpg,three\r\n\r\na.jpg,four\r\n'),
    ],
)
def test_tables_are_read_by_their_headers(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_captions(str(tmp_path / name)) == [
        Item(0, "a.jpg", ["one, two", "four"]),
        Item(1, "b.jpg", ["three"]),
    ]


def test_columns_can_be_named(tmp_path):
    (tmp_path / "a.csv").write_text("path,image,de,en\nx,a.jpg,eins,one\n")
    items = read_captions(str(tmp_path / "a.csv"), "path", "de")
    assert items == [Item(0, "x", ["eins"])]


def test_coco_captions(tmp_path):
    content = {
        "images": [{"id": 5, "file_name": "a.jpg"}, {"id": 6, "file_name": "b.jpg"}],
        "annotations": [
            {"image_id": 6, "caption": "one"},
            {"image_id": 5, "caption": "two"},
            {"image_id": 6, "caption": "three"},
        ],
    }
    (tmp_path / "captions.json").write_text(json.dumps(content))
    assert read_captions(str(tmp_path / "captions.json")) == [
        Item(0, "b.jpg", ["one", "three"]),
        Item(1, "a.jpg", ["two"]),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "url,words\na,b\n", "expected one of image, file.*--image_column"),
        ("a.csv", "image,words\na,b\n", "expected one of caption.*--caption_column"),
        ("a.csv", "", "expected one of image"),
        ("a.csv", "image,caption\na.jpg,b\na.jpg,one, two\n", "line 3: 3 columns.*has 2.*quoted"),
        ("a.json", '{"images": []}', "expected COCO captions"),
        ("a.json", "[", "expected COCO captions"),
    ],
)
def test_unreadable_captions_say_what_was_expected(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_captions(str(tmp_path / name))


# Images


def test_small_jpeg_keeps_its_bytes():
    data = encode(height=40, width=64)
    sizes = {"width": 64, "height": 40, "original_width": 64, "original_height": 40}
    assert encode_image(data, 64) == (data, sizes)


@pytest.mark.parametrize("kind", ["large", "png", "webp", "grey", "cmyk", "16 bit"])
def test_other_images_become_small_rgb_jpegs(kind):
    pixels = np.full((90, 60, 3), (200, 100, 50), np.uint8)
    if kind == "large":
        data = simplejpeg.encode_jpeg(pixels, 95)
    elif kind == "grey":
        data = cv2.imencode(".jpg", pixels[..., 1])[1].tobytes()
    elif kind == "cmyk":
        # Inverted, as Adobe's writers have it.
        cmyk = np.concatenate([pixels, np.full((90, 60, 1), 255, np.uint8)], axis=-1)
        data = simplejpeg.encode_jpeg(cmyk, 95, colorspace="CMYK", colorsubsampling="444")
    elif kind == "16 bit":
        data = cv2.imencode(".png", pixels[..., ::-1].astype(np.uint16) * 257)[1].tobytes()
    else:
        data = cv2.imencode(f".{kind}", pixels[..., ::-1])[1].tobytes()
    jpeg, sizes = encode_image(data, 45)
    assert sizes == {"width": 30, "height": 45, "original_width": 60, "original_height": 90}
    assert simplejpeg.decode_jpeg_header(jpeg)[:3] == (45, 30, "YCbCr")
    if kind != "cmyk":  # whose colours are a matter of taste
        expected = 100 if kind == "grey" else pixels[0, 0]
        assert np.abs(decode(jpeg).mean(axis=(0, 1)) - expected).max() < 4


@pytest.mark.parametrize("max_side", [16, 512])
def test_orientation_is_applied(max_side):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, 16:] = 255  # white on the right, so at the bottom once it is upright
    data = simplejpeg.encode_jpeg(pixels, 95)
    jpeg, sizes = encode_image(data[:2] + EXIF_ORIENTATION_6 + data[2:], max_side)
    assert (sizes["original_width"], sizes["original_height"]) == (16, 32)
    upright = decode(jpeg)
    assert (
        upright.shape[:2]
        == (sizes["height"], sizes["width"])
        == (min(max_side, 32), min(max_side, 32) // 2)
    )
    assert upright[:4].mean() < 10
    assert upright[-4:].mean() > 245


def test_corrupt_jpeg_is_refused():
    data = simplejpeg.encode_jpeg(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    for broken in (data[: len(data) // 2], b"", b"GIF"):
        with pytest.raises(BrokenImageError):
            encode_image(broken, 512)


# Shards


def write_images(folder: Path, count: int) -> list[Item]:
    folder.mkdir()
    for i in range(count):
        (folder / f"{i}.jpg").write_bytes(encode(value=10 * i))
    return [Item(i, f"{i}.jpg", [f"caption {i}", f"other {i}"]) for i in range(count)]


def test_shards_hold_every_pair_in_order(tmp_path):
    items = write_images(tmp_path / "images", 7)
    output = str(tmp_path / "out" / "pairs-{:03d}.tar")
    summary = write_shards(items, str(tmp_path / "images"), output, 3, 512)
    assert str(summary) == (
        "7 images = 7 written in 3 shards + 0 dropped; "
        "14 captions = 14 written + 0 blank or of dropped images"
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "pairs-000.tar",
        "pairs-001.tar",
        "pairs-002.tar",
    ]
    source = WebDatasetSource([output.format(i) for i in range(3)])
    assert [source[i] for i in range(7)] == [
        {"image": encode(value=10 * i), "captions": items[i].captions, "key": f"{i:09d}"}
        for i in range(7)
    ]


def test_members_are_those_of_img2dataset(tmp_path):
    items = write_images(tmp_path / "images", 1)
    write_shards(items, str(tmp_path / "images"), str(tmp_path / "{}.tar"), 3, 512)
    with tarfile.open(tmp_path / "0.tar") as archive:
        assert archive.getnames() == ["000000000.jpg", "000000000.txt", "000000000.json"]
        assert archive.extractfile("000000000.txt").read() == b"caption 0"
        assert json.load(archive.extractfile("000000000.json")) == {
            "key": "000000000",
            "file": "0.jpg",
            "caption": "caption 0",
            "captions": ["caption 0", "other 0"],
            "status": "success",
            "width": 12,
            "height": 8,
            "original_width": 12,
            "original_height": 8,
        }


def test_unusable_items_are_dropped_named_and_counted(tmp_path, caplog):
    images = tmp_path / "images"
    items = write_images(images, 5)
    (images / "0.jpg").write_bytes(encode()[:100])
    (images / "1.jpg").unlink()
    items[2] = Item(2, "2.jpg", [" ", ""])
    items[3] = Item(3, "3.jpg", ["kept ", " "])
    summary = write_shards(items, str(images), str(tmp_path / "{}.tar"), 10, 512)
    assert str(summary) == (
        "5 images = 2 written in 1 shards + 3 dropped (1 broken images, 1 unreadable files, "
        "1 without a caption); 10 captions = 3 written + 7 blank or of dropped images"
    )
    for file in ("0.jpg", "1.jpg", "2.jpg"):
        assert f"Dropped {file}: " in caplog.text
    source = WebDatasetSource([str(tmp_path / "0.tar")])
    assert [source[i]["captions"] for i in range(2)] == [["kept"], items[4].captions]
    assert source[0]["key"] == "000000003"


def test_a_shard_appears_only_when_complete(tmp_path, monkeypatch):
    items = write_images(tmp_path / "images", 5)
    convert = shards._convert

    def stop_at_3(item, *args):
        if item.number == 3:
            raise KeyboardInterrupt
        return convert(item, *args)

    monkeypatch.setattr(shards, "_convert", stop_at_3)
    monkeypatch.setattr(shards, "_IMAGES_AT_ONCE", 1)
    with pytest.raises(KeyboardInterrupt):
        write_shards(items, str(tmp_path / "images"), str(tmp_path / "{}.tar"), 2, 512)
    assert [path.name for path in tmp_path.glob("*.tar")] == ["0.tar"]


def test_wrong_folders_and_names_are_refused_before_work(tmp_path):
    items = write_images(tmp_path / "images", 1)
    images = str(tmp_path / "images")
    with pytest.raises(ValueError, match="expected a field for the number"):
        write_shards(items, images, str(tmp_path / "pairs.tar"), 2, 512)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        write_shards(items, str(tmp_path / "none"), str(tmp_path / "{}.tar"), 2, 512)
    write_shards(items, images, str(tmp_path / "{}.tar"), 2, 512)
    with pytest.raises(FileExistsError, match=r"0\.tar exists already"):
        write_shards(items, images, str(tmp_path / "{}.tar"), 2, 512)
