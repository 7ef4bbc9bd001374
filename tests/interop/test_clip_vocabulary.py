import itertools
import json

import pytest

from groupvit_jax.data.text.tokenizers import ClipTokenizer
from groupvit_jax.interop import clip_vocabulary

TEXTS = [
    "a photo of a cat",
    "Don't stop me now, it's 1234.5 km!!!",
    "naïve café — Würfel, smörgåsbord",
    "日本語 中文 русский العربية हिन्दी ทดสอบ",
    "😀👍🏽 #tag @user $5.00 <b>bold</b>",
    "<start_of_text> a\tb  c \N{REPLACEMENT CHARACTER}",
]


@pytest.fixture(scope="module")
def vocabulary():
    return clip_vocabulary.read_vocabulary()


def test_the_vocabulary_is_complete(vocabulary):
    tokens, merges = vocabulary
    assert len(set(tokens)) == len(tokens) == 49408
    assert len(set(merges)) == len(merges) == 49408 - 512 - 2
    assert [first + second for first, second in merges] == tokens[512:-2]
    assert set(itertools.chain(*merges)) <= set(tokens)


def test_known_tokens_stand_where_clip_has_them(vocabulary):
    tokens, merges = vocabulary
    assert [tokens[i] for i in (0, 256, 320, 1125, 2368)] == [
        "!",
        "!</w>",
        "a</w>",
        "photo</w>",
        "cat</w>",
    ]
    assert merges[:2] == [("i", "n"), ("t", "h")]
    assert tokens[-2:] == ["<|startoftext|>", "<|endoftext|>"]


def test_transformers_tokenizes_alike(tmp_path):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    clip_vocabulary.write_tokenizer(tmp_path, 77)
    assert len(json.loads((tmp_path / "vocab.json").read_text())) == 49408
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    for text, row in zip(TEXTS, ClipTokenizer(77)(TEXTS), strict=True):
        expected = theirs(text, truncation=True)["input_ids"]
        assert row[row > 0].tolist() == expected, text
