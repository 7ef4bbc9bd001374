import json

import pytest

from groupvit_jax.data.sources.captions_table import ImageCaptions, read_captions, read_texts


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
        ImageCaptions("a.jpg", ["one, two", "four"]),
        ImageCaptions("b.jpg", ["three"]),
    ]


def test_columns_can_be_named(tmp_path):
    (tmp_path / "a.csv").write_text("path,image,de,en\nx,a.jpg,eins,one\n")
    items = read_captions(str(tmp_path / "a.csv"), "path", "de")
    assert items == [ImageCaptions("x", ["eins"])]


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
        ImageCaptions("b.jpg", ["one", "three"]),
        ImageCaptions("a.jpg", ["two"]),
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
        ("a.csv", "image,caption\na.jpg,caf\udce9\n", "a.csv: no table in UTF-8"),
        ("a.csv", "image,caption\na.jpg," + "long" * 40_000 + "\n", "a.csv: no table.*limit"),
    ],
)
def test_unreadable_captions_say_what_was_expected(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=message):
        read_captions(str(tmp_path / name))


def test_usual_names_are_taken_in_their_order(tmp_path):
    (tmp_path / "a.csv").write_text("text,path,image,caption\nno,no,a.jpg,one\n")
    assert read_captions(str(tmp_path / "a.csv")) == [ImageCaptions("a.jpg", ["one"])]


def test_texts_need_no_column_of_images(tmp_path):
    (tmp_path / "a.tsv").write_text("caption\tlanguage\none\ten\ndeux\tfr\n")
    assert list(read_texts(str(tmp_path / "a.tsv"))) == ["one", "deux"]
    assert list(read_texts(str(tmp_path / "a.tsv"), "language")) == ["en", "fr"]
