import pytest

from groupvit_jax.data.text.prompt_files import read_lines_of, read_prompts

FILES = {
    "lines.txt": ("a photo of a {}.\n\n a {}, small. \n", ["a photo of a {}.", "a {}, small."]),
    "list.json": ('["a {}."]', ["a {}."]),
    "by_class.toml": ('"*" = ["a {}."]\ncrane = "a bird"', {"": ["a {}."], "crane": ["a bird"]}),
    "by_class.json": ('{"crane": ["a bird", "a {}"]}', {"crane": ["a bird", "a {}"]}),
}


@pytest.mark.parametrize("name", FILES)
def test_prompts_in_each_form(name, tmp_path):
    text, expected = FILES[name]
    (tmp_path / name).write_text(text)
    assert read_prompts(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"crane": 3}', r"a.json: crane: 3 found, expected a list of texts"),
        ("a.json", "3", r"a.json: expected a list of texts, or a table"),
        ("a.json", '{"crane": ["a {}"], "crane": ["b {}"]}', r"a.json: 'crane' found twice"),
        ("a.toml", "crane", r"a.toml: .*"),
    ],
)
def test_other_forms_are_named(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_lines_in_any_encoding(encoding, tmp_path):
    (tmp_path / "names.txt").write_bytes("Kr\u00e4he\r\nBaum\r\n".encode(encoding))
    assert read_lines_of(tmp_path / "names.txt") == ["Kr\u00e4he", "Baum"]


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.txt: no such file"):
        read_prompts(tmp_path / "none.txt")
