import subprocess
import sys

import numpy as np
import pytest

from benchmarks import tagger
from groupvit_jax.data.text import nouns

CAPTIONS = [" ".join(word for word, _ in caption) for caption in tagger.read_gold(tagger.GOLD)]


def test_the_tagger_agrees_with_the_gold_list():
    usable, exact, count = tagger.accuracy(tagger.read_gold(tagger.GOLD), nouns.tag)
    assert count > 500
    assert usable > 0.975
    assert exact > 0.94


def test_accuracy_counts_classes():
    gold = [[("dog", "N"), ("runs", "V"), ("red", "O"), ("x", "?"), (".", "O")]]
    assert tagger.accuracy(gold, lambda _: ["NN", "NNS", "JJ", "NN", "NN"]) == (1, 2 / 3, 3)
    assert tagger.accuracy(gold, lambda _: ["NNPS", "JJ", "VBG", "X", "."]) == (0, 0, 3)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A brown dog runs on the grass .", ["dog", "runs", "grass"]),
        ("two dogs and a dog , Dogs", ["dogs", "dog"]),
        ("THE VIEW FROM A TOWER", ["VIEW", "TOWER"]),
        ("Gorgeous Black Leather Bag", ["Leather", "Bag"]),
        ("the man's hat, the girl\u2019s T-shirt", ["man", "hat", "girl", "T-shirt"]),
        ("they don't sit", ["do", "sit"]),
        ("cats &amp; dogs", ["cats", "dogs"]),
        ("<PERSON> in 2018", ["PERSON"]),
        ("of the, and 12 x 7!", []),
        ("", []),
        (" \n ", []),
    ],
)
def test_nouns_are_the_distinct_nouns_and_verbs_in_order(caption, expected):
    assert nouns.nouns(caption) == expected


def test_the_published_drawing_takes_all_tagged_words_as_they_are_written():
    assert nouns.tagged_words("a dog and a dog and a cat") == ["dog", "dog", "cat"]
    rng = np.random.default_rng(0)
    drawn = [
        nouns.draw_prompts("a dog and a dog and a cat", 1, rng, "tagged_words")[1]
        for _ in range(3000)
    ]
    assert 0.64 < np.mean([word == ["dog"] for word in drawn]) < 0.7  # 2/3
    caption = "Gorgeous Black Leather Bag"
    assert nouns.tagged_words(caption) == caption.split()
    assert nouns.tagged_words("12 x 7 % of cats") == ["x", "%", "cats"]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A small brown dog on the wet grass .", ["small brown dog", "wet grass"]),
        ("a red stop sign", ["red stop sign"]),
        ("birthday cake , a cake and Birthday cake", ["birthday cake", "cake"]),
        ("the very happy", []),
        ("", []),
    ],
)
def test_phrases_are_adjectives_and_nouns_without_the_article(caption, expected):
    assert nouns.noun_phrases(caption) == expected


def test_prompts_put_distinct_words_into_templates():
    caption = "A brown dog jumps over a wooden fence near the water ."
    words = set(nouns.nouns(caption))
    prompts = nouns.make_prompts(caption, 3, np.random.default_rng(0))
    assert len(prompts) == 3
    used = [_word_of(prompt) for prompt in prompts]
    assert set(used) <= words
    assert len(set(used)) == 3


def _word_of(prompt):
    for template in nouns.clip_templates():
        before, after = template.split("{}")
        word = prompt[len(before) : len(prompt) - len(after)]
        if prompt == template.format(word) and " " not in word:
            return word
    raise AssertionError(f"{prompt!r} comes from no template")


def test_the_caption_fills_up():
    rng = np.random.default_rng(0)
    prompts = nouns.make_prompts("a dog", 3, rng)
    assert prompts[1:] == ["a dog", "a dog"]
    assert _word_of(prompts[0]) == "dog"
    assert nouns.make_prompts("", 2, rng) == ["", ""]
    assert nouns.make_prompts("a dog", 0, rng) == []


def test_prompts_depend_on_the_generator_alone():
    def draw(seed):
        rng = np.random.default_rng(seed)
        return [nouns.make_prompts(caption, 3, rng) for caption in CAPTIONS]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_every_word_and_every_template_is_drawn_about_equally_often():
    rng = np.random.default_rng(0)
    prompts = [nouns.make_prompts("a dog on a boat", 1, rng)[0] for _ in range(4000)]
    assert {template.format("dog") for template in nouns.clip_templates()} <= set(prompts)
    assert 0.45 < np.mean([_word_of(prompt) == "dog" for prompt in prompts]) < 0.55


def test_phrases_as_prompts():
    prompt = nouns.make_prompts("a small dog", 1, np.random.default_rng(0), "phrases")[0]
    assert "small dog" in prompt
    assert prompt != "a small dog"


def test_an_unknown_kind_names_the_field():
    with pytest.raises(
        ValueError, match=r"config.data.noun_kind: 'verbs' found, expected 'tagged_words' or"
    ):
        nouns.make_prompts("a dog", 1, np.random.default_rng(0), "verbs")


def test_templates_are_clips():
    templates = nouns.clip_templates()
    assert len(set(templates)) == 80
    assert all(template.count("{}") == 1 for template in templates)
    assert templates[0] == "a bad photo of a {}."
    assert "itap of my {}." in templates


def test_any_characters_can_be_tagged():
    rng = np.random.default_rng(0)
    letters = list("abAB /'\u2019-_&;\n\t\u00a0\u2028\x85\x0b\x00日é<>.0{}%nt")
    for _ in range(2000):
        caption = "".join(rng.choice(letters, rng.integers(16)))
        words = nouns.split_words(caption)
        assert len(nouns.tag(words)) == len(words)
        assert len(nouns.make_prompts(caption, 2, rng)) == 2
        assert len(nouns.make_prompts(caption, 2, rng, "phrases")) == 2


def test_threads_that_start_together_and_new_processes_agree():
    script = (
        "import sys; from concurrent.futures import ThreadPoolExecutor\n"
        "from groupvit_jax.data.text.nouns import nouns\n"
        "captions = sys.stdin.read().splitlines()\n"
        "with ThreadPoolExecutor(8) as pool: print(list(pool.map(nouns, captions)))\n"
    )
    text = "\n".join(CAPTIONS)
    run = subprocess.run(
        [sys.executable, "-c", script], input=text, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == str([nouns.nouns(caption) for caption in CAPTIONS])
