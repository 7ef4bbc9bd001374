import dataclasses
import shutil

import numpy as np
import pytest

from groupvit_jax.data.text import caption_tokens, nouns, tokenizers
from groupvit_jax.data.text.caption_tokens import annotate, fingerprint, tokenize

CAPTIONS = ["A dog catches a red frisbee.", "blue", "word " * 100]


@pytest.fixture
def sentencepiece(tmp_path):
    def train(texts):
        path = tmp_path / f"{len(texts)}.model"
        path.write_bytes(tokenizers.train_sentencepiece(texts, 282))
        return str(path)

    return train


def test_nouns_are_those_of_the_tagger():
    found = annotate(CAPTIONS, None)
    assert list(found) == ["nouns"]
    assert found["nouns"] == {
        "tagged_words": [nouns.tagged_words(caption) for caption in CAPTIONS],
        "words": [nouns.nouns(caption) for caption in CAPTIONS],
        "phrases": [nouns.noun_phrases(caption) for caption in CAPTIONS],
    }


@pytest.mark.parametrize("context_length", [8, 77])
@pytest.mark.parametrize("prompts", [[], ["a photo of a dog.", "art of the frisbee."]])
def test_stored_ids_give_the_rows_of_the_tokenizer(context_length, prompts):
    tokens = annotate(CAPTIONS, caption_tokens.open_tokenizer("clip"))["tokens"]
    # The text is another, so that only stored ids give the rows of the caption.
    sample = {"captions": ["other"] * len(CAPTIONS), "tokens": tokens}
    tokenizer = tokenizers.ClipTokenizer(context_length)
    for index, caption in enumerate(CAPTIONS):
        rows = tokenize(sample, index, prompts, tokenizer)
        np.testing.assert_array_equal(rows, tokenizer([caption, *prompts]))
        assert rows.dtype == np.int32


def test_ids_of_another_tokenizer_are_not_used(sentencepiece, caplog):
    one, other = (
        caption_tokens.open_tokenizer(sentencepiece([f"a red dog {i}" for i in range(count)]))
        for count in (60, 70)
    )
    sample = {"captions": ["a dog"], **annotate(["another dog"], one)}
    for tokenizer in (other, tokenizers.ClipTokenizer()):
        rows = tokenize(sample, 0, ["red"], tokenizer)
        np.testing.assert_array_equal(rows, tokenizer(["a dog", "red"]))
    tokenize(sample, 0, ["red"], other)
    assert caplog.text.count("The data hold token ids of") == 2  # once for each


def test_the_fingerprint_does_not_hang_on_the_context_or_the_path(sentencepiece, tmp_path):
    path = sentencepiece([f"a red dog {i}" for i in range(60)])
    copy = tmp_path / "copy.model"
    shutil.copy(path, copy)
    one = caption_tokens.open_tokenizer(path)
    assert fingerprint(one) == fingerprint(dataclasses.replace(one, context_length=9))
    assert fingerprint(one) == fingerprint(caption_tokens.open_tokenizer(str(copy)))
    assert fingerprint(one) != fingerprint(tokenizers.ClipTokenizer())
