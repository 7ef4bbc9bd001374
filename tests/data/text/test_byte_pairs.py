import random

import pytest

from groupvit_jax.data.text.byte_pairs import BytePairs, read_merges, read_tokens

MAX_TOKENS = 75


@pytest.fixture(scope="module")
def encoder():
    return BytePairs()


def test_the_vocabulary_is_complete():
    tokens, merges = read_tokens(), read_merges()
    assert len(set(tokens)) == len(tokens) == 49408
    assert len(set(merges)) == len(merges) == 49408 - 512 - 2
    assert [first + second for first, second in merges] == tokens[512:-2]


def test_a_merge_joins_earlier_tokens():
    # Otherwise the order of merges within a word would matter, and the cut of long texts change it.
    ids = {token: i for i, token in enumerate(read_tokens())}
    for i, (first, second) in enumerate(read_merges(), start=512):
        assert ids[first] < i
        assert ids[second] < i


def test_known_tokens_stand_where_clip_has_them():
    tokens, merges = read_tokens(), read_merges()
    assert [tokens[i] for i in (0, 256, 320, 1125, 2368)] == [
        *("!", "!</w>", "a</w>", "photo</w>", "cat</w>")
    ]
    assert merges[:2] == [("i", "n"), ("t", "h")]
    assert tokens[-2:] == ["<|startoftext|>", "<|endoftext|>"]


LETTERS = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=170_000))
LONG_TEXTS = [
    LETTERS,
    "".join(random.Random(1).choices("etaoinshr", k=170_000)),
    "a" * 170_000,
    "!?" * 85_000,
    "😂" * 170_000,
    " \t" * 170_000 + LETTERS,
]


@pytest.mark.parametrize("text", LONG_TEXTS, ids=range(len(LONG_TEXTS)))
def test_cutting_a_long_text_changes_no_id(encoder, text):
    assert len(" ".join(text.split())) > encoder.relevant_length(MAX_TOKENS)
    # The library encodes the whole.
    expected = encoder.pipeline.encode(text, add_special_tokens=False).ids
    assert encoder.encode(text, MAX_TOKENS) == expected[:MAX_TOKENS]


def test_a_text_up_to_the_cut_is_encoded_whole(encoder):
    text = "dog " * (encoder.relevant_length(9) // 4)
    assert encoder.encode(text, 9) == [1929] * 9


def test_megabytes_of_letters_are_encoded():
    # An encoder that is quadratic in the length of a word would not end.
    assert len(BytePairs().encode("qwertyuiop" * 2**20, MAX_TOKENS)) == MAX_TOKENS
