import json

import pytest

from groupvit_jax.data.text.vocabulary import (
    CLIP,
    Vocabulary,
    from_json,
    read_vocabulary,
    to_json,
)

SOME = Vocabulary("wordpiece", b"[PAD]\n\xff", "somewhere")


@pytest.mark.parametrize("vocabulary", [CLIP, SOME])
def test_it_comes_back_from_json(tmp_path, vocabulary):
    values = json.loads(json.dumps(to_json(vocabulary)))
    assert from_json(values, tmp_path / "metadata") == vocabulary


def test_the_fingerprint_is_of_kind_and_content(tmp_path):
    (tmp_path / "vocab.txt").write_bytes(SOME.content)
    read = read_vocabulary("wordpiece", str(tmp_path / "vocab.txt"))
    assert read == SOME
    assert read.fingerprint == SOME.fingerprint
    assert SOME.fingerprint != Vocabulary("sentencepiece", SOME.content).fingerprint
    assert SOME.fingerprint != Vocabulary("wordpiece", b"[PAD]\n").fingerprint


def test_a_file_beside_is_read_and_compared(tmp_path):
    (tmp_path / "vocab.txt").write_bytes(SOME.content)
    values = {"name": "wordpiece", "path": "vocab.txt", "fingerprint": SOME.fingerprint}
    assert from_json(values, tmp_path / "config.json") == SOME
    (tmp_path / "vocab.txt").write_bytes(b"another")
    with pytest.raises(ValueError, match=rf"vocab.txt: .* expected the {SOME.fingerprint} that"):
        from_json(values, tmp_path / "config.json")


def test_damaged_content_names_the_file(tmp_path):
    values = to_json(SOME)
    with pytest.raises(ValueError, match=r"metadata: tokenizer.content is damaged"):
        from_json({**values, "content": "%%%"}, tmp_path / "metadata")
    with pytest.raises(ValueError, match=r"metadata: a vocabulary with fingerprint"):
        from_json({**values, "content": "AAAA"}, tmp_path / "metadata")


def test_a_missing_path_and_an_unknown_kind_name_the_field():
    with pytest.raises(ValueError, match=r"tokenizer.path is empty; expected a vocab.txt of"):
        read_vocabulary("wordpiece", "")
    with pytest.raises(ValueError, match=r"tokenizer.name is 'bpe'; expected one of clip, s"):
        read_vocabulary("bpe", "x")
