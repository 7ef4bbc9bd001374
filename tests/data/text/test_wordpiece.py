import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest

from groupvit_jax.data.text import tokenizers
from groupvit_jax.data.text.packing import pack_texts
from groupvit_jax.data.text.vocabulary import Vocabulary, read_vocabulary

SPECIAL = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
GOLD = Path(__file__).with_name("tagger_gold.tsv")
STRANGE = [
    "",
    "  A\tPhoto \n of  a   CAT ",
    "Café in Köln, naïve São Paulo; ÅNGSTRÖM İstanbul ΣΑΣ Straße ﬁne \uff21\uff22",
    "日本の犬と猫 北京 한국어 русский язык العربية ไทย हिन्दी",
    "don't-stop... $5+tax=^`~ 3.14% #dog @home \\ / <b> “quoted” \u2013 dash … ¿qué?",
    "a\u200bzero\u00adwidth\ufeff \u00a0space\u2028line\x07bell\x85next \ufffd",
    "[SEPARATE] dogs [ SEP",
    "😀 dogs ❤️ ½ ² Ⅳ x_y 1️⃣",
    "x" * 101 + " dog " + "x" * 100,
    "e\u0301 combining \u0301 alone",
]


def captions():
    """The project's own captions, a word a line in the file."""
    lines = GOLD.read_text().splitlines()
    blocks = (block for blank, block in itertools.groupby(lines, lambda line: not line.strip()))
    for block in blocks:
        words = [line.split("\t")[0] for line in block if line.strip() and line[0] != "#"]
        yield " ".join(words)


@pytest.fixture(scope="module")
def pieces():
    """Whole words of some captions, and letters alone and within words."""
    words = sorted(set(" ".join(list(captions())[:20]).lower().split()))
    letters = sorted({c for c in "".join(captions()).lower() if not c.isspace()} | set("北京的ß½"))
    parts = ["ing", "er", "dog", "s", "ed"]
    listed = [*SPECIAL, *letters, *words, *(f"##{part}" for part in [*letters, *parts])]
    return list(dict.fromkeys(listed))


def content(pieces):
    return ("\n".join(pieces) + "\n").encode()


def open_pieces(pieces, context_length=64):
    vocabulary = Vocabulary("wordpiece", content(pieces), "vocab.txt")
    return tokenizers.make_tokenizer(vocabulary, context_length)


def ids_of(row, end_id):
    return row[: list(row).index(end_id) + 1].tolist()


@pytest.mark.parametrize("cased", [False, True])
def test_ids_are_those_of_transformers(pieces, cased):
    transformers = pytest.importorskip("transformers")
    listed = [*pieces, "Dog", "A", "##S", "É"] if cased else pieces
    reference = transformers.BertTokenizer(
        {piece: i for i, piece in enumerate(listed)}, do_lower_case=not cased
    )
    texts = [*(t for t in captions() if t), *STRANGE]
    tokenizer = open_pieces(listed, 300)
    found = tokenizer(texts)
    assert len(texts) > 50
    known = 0
    for one, row in zip(texts, found, strict=True):
        expected = reference(tokenizers.clean_text(one))["input_ids"]
        assert ids_of(row, tokenizer.end_of_text_id) == expected, one
        known += sum(i != reference.unk_token_id for i in expected)
    assert known > 500


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a", "dog", "'", "s", "cafe", ",", "北", "京", "!"], list(range(6, 15))),
        (["A", "dog", "'", "s", "Café", ",", "北", "京", "!"], list(range(6, 15))),
    ],
)
def test_words_punctuation_and_ideographs_are_apart(words, expected):
    tokenizer = open_pieces([*SPECIAL, *words], 12)
    assert ids_of(tokenizer(["A dog's Café, 北京!"])[0], 4)[1:-1] == expected


def test_the_longest_pieces_are_taken_from_the_left():
    tokenizer = open_pieces([*SPECIAL, "un", "una", "##able", "##ble", "##a", "dog"], 8)
    assert tokenizer(["unable dog undog"]).tolist() == [[3, 7, 9, 11, 2, 4, 0, 0]]


def test_a_text_too_long_keeps_its_end(pieces):
    tokenizer = open_pieces(pieces, 6)
    row = tokenizer(["a dog " * 9])[0]
    assert row[0] == pieces.index("[CLS]")
    assert row[-1] == tokenizer.end_of_text_id == pieces.index("[SEP]")
    assert tokenizer([]).shape == (0, 6)
    assert tokenizer.vocab_size == len(pieces)


@pytest.mark.parametrize("spelt", ["[SEP]", "[CLS] dog [SEP] dog", "[PAD]"])
def test_a_caption_cannot_hold_special_pieces(pieces, spelt):
    tokenizer = open_pieces(pieces)
    row = tokenizer([f"a {spelt} cat"])[0]
    assert np.sum(row == tokenizer.end_of_text_id) == 1
    assert np.sum(row == pieces.index("[CLS]")) == 1
    assert np.flatnonzero(row == 0)[0] > np.flatnonzero(row == tokenizer.end_of_text_id)[0]


def test_packed_rows_hold_what_the_tokenizer_gives(pieces):
    tokenizer = open_pieces(pieces, 24)
    texts = tokenizer(["a red dog", "a photo of a dog", "", "a red dog"])
    row, ends, overflow = pack_texts(list(texts), 64, tokenizer.end_of_text_id)
    assert overflow == 0
    for expected, end in zip(texts, ends, strict=True):
        ids = ids_of(expected, tokenizer.end_of_text_id)
        assert row[end + 1 - len(ids) : end + 1].tolist() == ids
    assert ends[0] == ends[3]


def test_it_pickles(pieces):
    tokenizer = open_pieces(pieces)
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy == tokenizer
    np.testing.assert_array_equal(copy(["a dog"]), tokenizer(["a dog"]))


def test_windows_line_ends_change_nothing(pieces):
    windows = Vocabulary("wordpiece", content(pieces).replace(b"\n", b"\r\n"), "vocab.txt")
    np.testing.assert_array_equal(
        tokenizers.make_tokenizer(windows, 16)(["a dog"]), open_pieces(pieces, 16)(["a dog"])
    )


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (["a", "b"], r"no line is \[PAD\], expected one piece on each line"),
        (SPECIAL[:4], r"no line is \[SEP\]"),
        (SPECIAL[::-1], r"\[PAD\] has id 5, expected 0"),
    ],
)
def test_a_file_that_is_no_vocabulary_is_named(tmp_path, listed, message):
    path = tmp_path / "vocab.txt"
    path.write_bytes(content(listed))
    with pytest.raises(ValueError, match=rf"vocab.txt is no vocabulary of a BERT: {message}"):
        tokenizers.make_tokenizer(read_vocabulary("wordpiece", str(path)), 16)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n\xff\xfe")
    with pytest.raises(ValueError, match=r"vocab.txt is no vocabulary of a BERT: no UTF-8 text"):
        tokenizers.make_tokenizer(read_vocabulary("wordpiece", str(tmp_path / "vocab.txt")), 16)


def test_long_texts_without_spaces_are_encoded(pieces):
    # An encoder that is quadratic in the length of a word would not end.
    tokenizer = open_pieces(pieces, 8)
    unknown = pieces.index("[UNK]")
    row = tokenizer(["x" * 2**18 + " a"])[0]
    assert row[1:4].tolist() == [unknown, pieces.index("a"), tokenizer.end_of_text_id]
    assert tokenizer(["dog-" * 2**16])[0, -1] == tokenizer.end_of_text_id
