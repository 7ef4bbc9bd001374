import dataclasses

import pytest

from groupvit_jax.data import nouns, prepare_text, text
from groupvit_jax.data.prepare_text import annotate, fingerprint, token_ids

CAPTIONS = ["A dog catches a red frisbee.", "blue", "word " * 100]


@pytest.fixture
def sentencepiece(tmp_path):
    def train(texts):
        path = tmp_path / f"{len(texts)}.model"
        path.write_bytes(text.train_sentencepiece(texts, 282))
        return str(path)

    return train


def test_nouns_are_those_of_the_tagger():
    found = annotate(CAPTIONS, None)
    assert list(found) == ["nouns"]
    assert found["nouns"] == {
        "words": [nouns.nouns(caption) for caption in CAPTIONS],
        "phrases": [nouns.noun_phrases(caption) for caption in CAPTIONS],
    }


@pytest.mark.parametrize("context_length", [8, 77])
def test_ids_are_those_of_the_tokenizer(context_length):
    sample = annotate(CAPTIONS, prepare_text.open_tokenizer("clip"))
    tokenizer = text.ClipTokenizer(context_length)
    for index, row in enumerate(tokenizer(CAPTIONS).tolist()):
        ids = token_ids(sample, index, tokenizer)
        assert ids + [0] * (context_length - len(ids)) == row


def test_ids_of_another_tokenizer_are_not_used(sentencepiece):
    one, other = (
        prepare_text.open_tokenizer(sentencepiece([f"a red dog {i}" for i in range(count)]))
        for count in (60, 70)
    )
    sample = annotate(CAPTIONS, one)
    assert token_ids(sample, 0, one) is not None
    assert token_ids(sample, 0, other) is None
    assert token_ids(sample, 0, text.ClipTokenizer()) is None
    assert token_ids({}, 0, one) is None


def test_the_fingerprint_does_not_hang_on_the_context_or_the_path(sentencepiece, tmp_path):
    path = sentencepiece([f"a red dog {i}" for i in range(60)])
    copy = tmp_path / "copy.model"
    copy.write_bytes(open(path, "rb").read())
    one = text.SentencePieceTokenizer(path)
    assert fingerprint(one) == fingerprint(dataclasses.replace(one, context_length=9))
    assert fingerprint(one) == fingerprint(text.SentencePieceTokenizer(str(copy)))
    assert fingerprint(one) != fingerprint(text.ClipTokenizer())
