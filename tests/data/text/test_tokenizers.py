import io
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from configs import base
from groupvit_jax.data.text import tokenizers as text
from groupvit_jax.data.text.packing import pack_texts
from groupvit_jax.data.text.vocabulary import CLIP, read_vocabulary

CAPTIONS = [
    f"a {size} {color} {thing} {place} ."
    for size in ("big", "small", "tiny", "huge")
    for color in ("red", "blue", "green", "yellow", "brown")
    for thing in ("dog", "boat", "kite", "umbrella", "bicycle", "house")
    for place in ("on the grass", "near the water", "in the park", "behind a fence")
]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("sentencepiece") / "captions.model"
    path.write_bytes(text.train_sentencepiece(CAPTIONS, vocab_size=290))
    return str(path)


def open_model(path, context_length=77):
    return text.make_tokenizer(read_vocabulary("sentencepiece", path), context_length)


def _unpadded(row):
    return row[: np.flatnonzero(row)[-1] + 1].tolist()


def test_clip_gives_the_known_ids_and_pads_with_zeros():
    tokens = text.ClipTokenizer()(["a photo of a cat", "a photo of a dog", ""])
    assert tokens.shape == (3, 77)
    assert tokens.dtype == np.int32
    assert _unpadded(tokens[0]) == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert _unpadded(tokens[1]) == [49406, 320, 1125, 539, 320, 1929, 49407]
    assert _unpadded(tokens[2]) == [49406, 49407]
    assert not tokens[0, 7:].any()


@pytest.mark.parametrize("context_length", [3, 10, 77, 200])
def test_clip_truncation_keeps_the_end_token(context_length):
    tokenizer = text.ClipTokenizer(context_length)
    tokens = tokenizer(["cat " * 300])
    assert tokens.tolist() == [[49406] + [2368] * (context_length - 2) + [49407]]
    assert tokens[0, -1] == tokenizer.end_of_text_id


def sizes_of(text_config):
    names = ("vocab_size", "end_of_text_id", "context_length")
    return {name: text_config[name] for name in names}


def test_clip_sizes_are_those_of_the_published_config():
    text.check_text_tower(text.ClipTokenizer(), **sizes_of(base.get_config().model.text))


@pytest.mark.parametrize(
    ("noisy", "clean"),
    [
        ("  A\tPhoto \n of  a   CAT ", "a photo of a cat"),
        ("cats &amp; dogs", "cats & dogs"),
        ("cats &amp;amp; dogs", "cats & dogs"),
        ("a cafÃ© in kÃ¶ln", "a café in köln"),
        ("the cat\u2019s \u201chat\u201d", 'the cat\'s "hat"'),
        ("a\x07 cat", "a cat"),
    ],
)
def test_clip_cleans_text_as_the_published_tokenizer(noisy, clean):
    tokenizer = text.ClipTokenizer()
    np.testing.assert_array_equal(tokenizer([noisy]), tokenizer([clean]))


def test_clip_ids_beyond_ascii_are_those_of_the_published_tokenizer():
    # Made once with OpenAI's simple_tokenizer.
    tokens = text.ClipTokenizer()(["Café don't 2023 😀", "日本 ½ x_y"])
    assert _unpadded(tokens[0])[1:-1] == [15304, 847, 713, 273, 271, 273, 274, 7334]
    assert _unpadded(tokens[1])[1:-1] == [39121, 19277, 361, 33613, 343, 318, 344]


def test_clip_ids_of_awkward_texts_are_those_of_another_implementation():
    # Made once with instant-clip-tokenizer 0.1.1 (Unicode 15), texts cleaned as here: markup,
    # wrong decoding, scripts, emoji, long words, random characters.
    golden = json.loads(Path(__file__).with_name("clip_ids.json").read_text())
    assert len(golden) == 407
    rows = text.ClipTokenizer()([one for one, _ in golden])
    for row, (one, expected) in zip(rows, golden, strict=True):
        assert _unpadded(row)[1:-1] == expected, one


@pytest.mark.parametrize("marker", ["<end_of_text>", "<END_OF_TEXT>", "<start_of_text>"])
def test_a_caption_cannot_hold_clips_marker_tokens(marker):
    tokens = text.ClipTokenizer()([f"a {marker} cat"])[0]
    assert np.sum(tokens == 49407) == 1
    assert np.sum(tokens == 49406) == 1


def test_no_texts_give_no_rows(model_file):
    assert text.ClipTokenizer(9)([]).shape == (0, 9)
    assert open_model(model_file, 9)([]).shape == (0, 9)


@pytest.mark.parametrize("kind", ["clip", "sentencepiece"])
def test_tokenizers_pickle_and_serve_several_threads(kind, model_file):
    tokenizer = text.make_tokenizer(read_vocabulary(kind, model_file), 16)
    expected = tokenizer(CAPTIONS)
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy == tokenizer
    with ThreadPoolExecutor(8) as pool:
        for tokens in pool.map(copy, [CAPTIONS] * 16):
            np.testing.assert_array_equal(tokens, expected)


def test_sentencepiece_starts_ends_and_pads(model_file):
    tokenizer = open_model(model_file, 32)
    tokens = tokenizer(["A red DOG", ""])
    assert tokens.dtype == np.int32
    assert tokenizer.vocab_size == 290
    ids = _unpadded(tokens[0])
    assert (ids[0], ids[-1]) == (2, 3)
    model = sentencepiece.SentencePieceProcessor(model_file=model_file)
    assert model.decode(ids) == "a red dog"
    assert _unpadded(tokens[1]) == [2, 3]


def test_sentencepiece_truncation_keeps_the_end_token(model_file):
    full = open_model(model_file, 64)(["a red dog on the grass"])[0]
    cut = open_model(model_file, 6)(["a red dog on the grass"])[0]
    assert cut.tolist() == [*full[:5].tolist(), 3]


def test_sentencepiece_falls_back_to_bytes(model_file):
    model = sentencepiece.SentencePieceProcessor(model_file=model_file)
    tokens = open_model(model_file, 32)(["日本"])[0]
    assert model.unk_id() not in tokens
    assert model.decode(_unpadded(tokens)) == "日本"


def _write_model(path, **special):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS),
        model_writer=model,
        vocab_size=36,
        minloglevel=2,
        **special,
    )
    path.write_bytes(model.getvalue())
    return str(path)


def test_a_model_without_start_piece_and_with_unknown_as_zero_serves(tmp_path):
    path = _write_model(tmp_path / "a.model", unk_id=0, bos_id=-1, eos_id=1, pad_id=-1)
    tokens = open_model(path, 20)(["a red dog"])[0]
    assert _unpadded(tokens)[-1] == 1
    assert np.sum(tokens == 1) == 1


@pytest.mark.parametrize(
    ("special", "message"),
    [
        (dict(eos_id=-1), "end piece has id -1"),
        (dict(bos_id=0, unk_id=1, eos_id=2), "id 0 is '<s>'"),
        (dict(eos_id=0, unk_id=1, bos_id=2), "end piece has id 0"),
    ],
)
def test_a_model_whose_special_pieces_do_not_fit_is_refused(tmp_path, special, message):
    path = _write_model(tmp_path / "a.model", **special)
    with pytest.raises(ValueError, match=message):
        open_model(path)


@pytest.mark.parametrize(
    ("name", "path", "error", "message"),
    [
        ("bpe", "", ValueError, r"tokenizer.name is 'bpe'; expected one of clip"),
        ("sentencepiece", "", ValueError, r"tokenizer.path is empty"),
        ("sentencepiece", "/no/x.model", FileNotFoundError, r"path=/no/x.model"),
    ],
)
def test_a_wrong_tokenizer_config_names_the_field(name, path, error, message):
    with pytest.raises(error, match=message):
        read_vocabulary(name, path)


@pytest.mark.parametrize("content", [b"", b"no model"])
def test_a_file_that_is_no_model_is_named(tmp_path, content):
    path = tmp_path / "broken.model"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.model is no SentencePiece model"):
        open_model(str(path))


def test_a_context_without_room_is_refused():
    with pytest.raises(ValueError, match=r"context_length is 2; expected at least 3"):
        text.make_tokenizer(CLIP, 2)


@pytest.mark.parametrize("field", ["vocab_size", "end_of_text_id", "context_length"])
def test_the_text_tower_must_have_the_sizes_of_the_tokenizer(model_file, field):
    sizes = dict(vocab_size=290, end_of_text_id=3, context_length=77)
    text.check_text_tower(open_model(model_file, 77), **sizes)
    message = rf"^config.model.text.{field} is 9, the tokenizer's is {sizes[field]}: set"
    with pytest.raises(ValueError, match=message):
        text.check_text_tower(open_model(model_file, 77), **sizes | {field: 9})


@pytest.mark.parametrize(
    ("captions", "vocab_size", "message"),
    [
        ([], 300, "no caption"),
        (["", "  \n"], 300, "no caption"),
        (CAPTIONS, 20, r"vocab_size=20: .*smaller than required"),
        (CAPTIONS, 9000, r"vocab_size=9000: .*too high"),
    ],
)
def test_training_a_vocabulary_that_cannot_be_says_why(captions, vocab_size, message):
    with pytest.raises(ValueError, match=message):
        text.train_sentencepiece(captions, vocab_size)


def test_training_on_a_sample_is_deterministic():
    models = {text.train_sentencepiece(CAPTIONS, 290, max_captions=300) for _ in range(2)}
    assert len(models) == 1


@pytest.mark.parametrize("num_nouns", [0, 3])
@pytest.mark.parametrize("name", ["clip", "sentencepiece"])
def test_packed_rows_hold_what_the_tokenizer_gives(name, num_nouns, model_file):
    tokenizer = text.ClipTokenizer(32) if name == "clip" else open_model(model_file, 32)
    texts = tokenizer(["a red dog near a tree", "a photo of a dog", "", "a red dog near a tree"])[
        : 1 + num_nouns
    ]
    row, ends, overflow = pack_texts(list(texts), 96, tokenizer.end_of_text_id)
    assert overflow == 0
    for expected, end in zip(texts, ends, strict=True):
        ids = _unpadded(expected)
        assert row[end + 1 - len(ids) : end + 1].tolist() == ids
    assert len(set(ends.tolist())) == len({ids.tobytes() for ids in texts})


def test_texts_that_say_the_same_have_one_id():
    assert text.text_id(" A red  Dog") == text.text_id("a red dog")
    assert text.text_id("Straße") == text.text_id("STRASSE")
    ids = {text.text_id(f"noun {i}") for i in range(10_000)} | {text.text_id(""), text.text_id("é")}
    assert len(ids) == 10_002
    assert all(0 <= number < 2**31 for number in ids)
    assert text.text_id("dog") == 19675517  # in every process and run
    text.text_id("\ud83d")  # half a character


def test_start_tokens_are_known(model_file):
    assert text.has_start_token(text.ClipTokenizer(8))
    assert text.has_start_token(open_model(model_file, 8))
