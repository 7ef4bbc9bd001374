import os

import pytest

from groupvit_jax.runs.files import read_json, replace_text, write_json


def test_an_object_is_read_as_it_was_written(tmp_path):
    write_json(tmp_path / "a.json", {"name": "naïve", "values": [1, None]})
    assert read_json(tmp_path / "a.json") == {"name": "naïve", "values": [1, None]}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    replace_text(tmp_path / "a.txt", "old")
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        replace_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "a.json: not JSON: .*; expected a table"),
        (b"\xff{}", "a.json: not JSON: .*; expected a table"),
        (b"[]", "a.json: a JSON list, expected a table"),
    ],
)
def test_something_else_is_named_with_what_was_expected(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_json(tmp_path / "a.json", "a table")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.json: no such file"):
        read_json(tmp_path / "a.json")
