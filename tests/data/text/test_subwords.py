import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from groupvit_jax.data.text.subwords import SubwordEncoder

WORDS = ["?", "a", "dog", ",", "x" * 100]


@pytest.fixture
def pipeline():
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    pipeline = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    pipeline.pre_tokenizer = pre_tokenizers.Whitespace()
    return pipeline


@pytest.fixture
def encoder(pipeline):
    return SubwordEncoder(pipeline)


def test_a_text_is_its_chunks(encoder):
    for _ in range(2):  # the second time from the memo
        assert encoder.encode("a dog,  a\tdog ,", 99) == [1, 2, 3, 1, 2, 3]
        assert encoder.encode("", 99) == encoder.encode("   ", 99) == []
        assert encoder.encode("x" * 100 + " a", 99) == [4, 1]


@pytest.mark.parametrize("max_tokens", [1, 2, 3])
def test_only_the_first_ids_are_kept(encoder, max_tokens):
    assert encoder.encode("dog,dog a a a", max_tokens) == [2, 3, 2][:max_tokens]
    assert encoder.encode("dog,dog a a a", 99) == [2, 3, 2, 1, 1, 1]


def test_a_full_memo_changes_no_id(pipeline):
    encoder = SubwordEncoder(pipeline, max_chunks=3)
    for _ in range(3):
        for word, i in [("a", 1), ("dog", 2), (",", 3), ("b", 0), ("c", 0), ("a,", None)]:
            assert encoder.encode(word, 9) == ([1, 3] if i is None else [i])
