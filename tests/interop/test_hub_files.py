import io

import numpy as np
import pytest
import sentencepiece

from configs import scenes
from groupvit_jax.data.text.tokenizers import make_tokenizer, train_sentencepiece
from groupvit_jax.data.text.vocabulary import Vocabulary
from groupvit_jax.interop.hub_files import Origin, write_card, write_tokenizer
from groupvit_jax.scenes import dataset

SMALL = dataset.SceneConfig(name="small")
CAPTIONS = [dataset.make_example(SMALL, "train", i)[2] for i in range(60)]
HARD = ["A DOG on the Grass", "naïve café, Würfel", "日本語 русский", "two   spaces ", "🐶", ""]


@pytest.fixture(scope="module")
def unigram():
    return Vocabulary("sentencepiece", train_sentencepiece([*CAPTIONS * 10, *HARD[:4]], 340))


@pytest.fixture(scope="module")
def wordpiece():
    words = sorted({word for caption in CAPTIONS for word in caption.split()})
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *dict.fromkeys([*words, *letters, ","])]
    return Vocabulary("wordpiece", "\n".join(pieces).encode())


@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
def test_transformers_tokenizes_alike(tmp_path, request, kind):
    transformers = pytest.importorskip("transformers")
    vocabulary = request.getfixturevalue(kind)
    assert write_tokenizer(tmp_path, vocabulary, 16)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = make_tokenizer(vocabulary, 16)
    texts = [*CAPTIONS, *HARD, "long " * 40]
    found = theirs(texts, padding="max_length", truncation=True, return_tensors="np")
    np.testing.assert_array_equal(found["input_ids"], ours(texts))


def test_a_sentencepiece_model_of_another_kind_has_no_files(tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS),
        model_writer=model,
        model_type="bpe",
        vocab_size=120,
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        minloglevel=2,
    )
    assert not write_tokenizer(tmp_path, Vocabulary("sentencepiece", model.getvalue()), 16)
    assert list(tmp_path.iterdir()) == []


def card_of(folder, *args, **kwargs):
    write_card(folder, *args, **kwargs)
    return (folder / "README.md").read_text()


def test_the_card_says_what_a_user_needs(tmp_path):
    config = scenes.get_config()
    config.data.sources.scenes.data_dir = "/home/ada/secret"
    config.init_from = "/home/ada/secret/first"
    config.train.num_steps = 800
    metrics = {"loss": 5.9, "test/miou": 0.617, "test/iou/sky": 0.9, "groups_in_use/stage_0": 10.9}
    card = card_of(tmp_path, Origin(config, metrics), "cc-by-4.0", has_tokenizer=True)
    assert card.startswith("---\nlicense: cc-by-4.0\nlibrary_name: transformers\n")
    for text in ("scenes (scenes/small)", "800 steps", "| test | miou | 0.617 |", "cc-by-4.0"):
        assert text in card
    assert "from groupvit_jax import Segmenter" in card
    assert "AutoTokenizer.from_pretrained" in card
    for text in ("secret", "sky", "groups_in_use"):
        assert text not in card


def test_the_card_of_a_file_claims_nothing(tmp_path):
    card = card_of(tmp_path, None, "", has_tokenizer=False)
    assert "license: unknown" in card
    assert "Not known" in card
    assert "None were measured" in card
    assert "AutoTokenizer" not in card
