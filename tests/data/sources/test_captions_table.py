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
        ("a.json", "[", "a.json: can't be parsed as JSON"),
        ("a.json", "[" * 100_000, "a.json: can't be parsed"),
        ("a.json", "[1]", "entry 0: '1' found, expected an object"),
        ("a.jsonl", '{"image": "a", "text": "b"}\n{"image": "a"}\n', "line 2: no 'text'"),
        ("a.jsonl", '{"image": 5, "text": "b"}\n', "line 1: 5 found, expected the path"),
        ("a.jsonl", '{"image": "a", "text": "b"}\n{\n', "line 2: can't be parsed"),
        ("a.csv", "url,text\nhttp://a.b,c\n", "fetched with img2dataset first"),
        ("a.csv", "image,caption\na.jpg,b\na.jpg,caf\udce9\n", r"line 3: not UTF-8 \(b'\\xe9' in"),
        ("a.csv", "image,caption\na.jpg," + "long" * 300_000 + "\n", "line 2: a quote opens here"),
        ("a.csv", "x" * 2**22, "line 1: more than 4194304 characters"),
        ("a.csv", 'image,caption\na.jpg,b\nb.jpg,"c\nd.jpg,e\n', "line 3: a quote opens here"),
        ("a.csv", 'image,caption\nb.jpg,"c\nd.jpg,e\nf.jpg,"g"\n', "line 2: a quote opens"),
    ],
)
def test_unreadable_captions_say_what_was_expected(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
    with pytest.raises(ValueError, match=message):
        read_captions(str(tmp_path / name))


def test_usual_names_are_taken_in_their_order(tmp_path):
    (tmp_path / "a.csv").write_text("text,path,image,caption\nno,no,a.jpg,one\n")
    assert read_captions(str(tmp_path / "a.csv")) == [ImageCaptions("a.jpg", ["one"])]


def test_texts_need_no_column_of_images(tmp_path):
    (tmp_path / "a.tsv").write_text("caption\tlanguage\none\ten\ndeux\tfr\n")
    assert list(read_texts(str(tmp_path / "a.tsv"))) == ["one", "deux"]
    assert list(read_texts(str(tmp_path / "a.tsv"), "language")) == ["en", "fr"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "a.jsonl",
            '{"file_name": "a.jpg", "text": ["one", null]}\n\n{"text": "b", "file_name": "b.jpg"}',
        ),
        (
            "A.JSON",
            '[{"image": "a.jpg", "caption": ["one", 5]}, {"image": "b.jpg", "caption": "b"}]',
        ),
    ],
)
def test_objects_are_rows(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    expected = [ImageCaptions("a.jpg", ["one", ""]), ImageCaptions("b.jpg", ["b"])]
    assert read_captions(str(tmp_path / name)) == expected


def test_captions_may_span_lines(tmp_path):
    (tmp_path / "a.csv").write_text('image,caption\na.jpg,"one\ntwo, three"\n  \nb.jpg,"four\n"\n')
    expected = [ImageCaptions("a.jpg", ["one\ntwo, three"]), ImageCaptions("b.jpg", ["four\n"])]
    assert read_captions(str(tmp_path / "a.csv")) == expected


@pytest.mark.parametrize("stray", ['"Welcome home', '"Welcome" home', '5" pipe', 'a "sign', '"'])
@pytest.mark.parametrize("row", [0, 3, 7])
def test_a_stray_quote_swallows_no_row_of_a_tsv(tmp_path, stray, row):
    captions = [f"caption {i}" for i in range(8)]
    captions[row] = stray
    rows = [f"{i}.jpg\t{caption}\n" for i, caption in enumerate(captions)]
    (tmp_path / "a.tsv").write_text("filepath\ttitle\n" + "".join(rows))
    found = read_captions(str(tmp_path / "a.tsv"))
    assert [item.captions for item in found] == [[caption] for caption in captions]


def test_utf_16_of_spreadsheets_is_read(tmp_path):
    (tmp_path / "a.csv").write_text("image,caption\na.jpg,dög\n", encoding="utf-16")
    assert read_captions(str(tmp_path / "a.csv")) == [ImageCaptions("a.jpg", ["dög"])]


def test_several_tables_are_joined(tmp_path):
    for i in range(2):
        (tmp_path / f"{i}.csv").write_text(f"image,caption\na.jpg,{i}\n{i}.jpg,x\n")
    found = read_captions([f"{tmp_path}/{i}.csv" for i in range(2)])
    assert [(i.file, i.captions) for i in found] == [
        ("a.jpg", ["0", "1"]),
        ("0.jpg", ["x"]),
        ("1.jpg", ["x"]),
    ]


@pytest.mark.parametrize("path", ["/dev/zero", "."])
def test_only_files_are_read(path):
    with pytest.raises(ValueError, match="expected a file"):
        read_captions(path)
