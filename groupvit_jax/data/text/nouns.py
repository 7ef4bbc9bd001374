"""Nouns of a caption and the prompts made of them, the positives of the multi-label loss.

The tagger is TextBlob's: a lexicon of 94,000 words and suffix rules, all inside its wheel, so
nothing is downloaded. docs/text.md has its accuracy and speed.
"""

import functools
import importlib.resources
import re
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from groupvit_jax.data.text.tokenizers import clean_text

__all__ = [
    "KINDS",
    "all_kinds",
    "clip_templates",
    "draw_prompts",
    "make_prompts",
    "noun_phrases",
    "nouns",
    "split_words",
    "tag",
    "tagged_words",
]

KINDS = ("tagged_words", "words", "phrases")
# The published choice. It includes verbs, which describe the image too, and lacks NNPS.
_TAGS = frozenset(["NN", "NNS", "NNP", "VB", "VBD", "VBG", "VBN", "VBP", "VBZ"])

# A word with its inner hyphens and apostrophes but without its clitic; a clitic; any other
# single character.
_WORD = re.compile(
    r"[^\W_]+(?=n't\b)|n't\b"
    r"|[^\W_]+(?:-[^\W_]+|'(?!(?:s|m|d|re|ve|ll)\b)[^\W_]+)*"
    r"|'(?:s|m|d|re|ve|ll)\b|\S",
    re.IGNORECASE,
)

# One letter per word. A base-form verb after a determiner is a noun that the lexicon knows better
# as a verb ("a stop sign").
_LETTER = {"DT": "D", "PRP$": "D", "POS": "D", "JJ": "J", "JJR": "J", "JJS": "J", "VB": "V"}
_PHRASE = re.compile(r"J*N+|(?<=D)J*VN*")

_loading = threading.Lock()


def tagged_words(caption: str) -> list[str]:
    """Return the caption's nouns and verbs as published: repeats, single letters and symbols too.

    Tags are those of the caption as it is written, in which most capitalised words are NNP.
    """
    words = split_words(caption)
    return _tagged_words(words, _lexicon_tags(words))


def nouns(caption: str) -> list[str]:
    """Return the caption's nouns and verbs, each once (whatever its case), in order."""
    words = split_words(caption)
    return _nouns(words, tag(words))


def noun_phrases(caption: str) -> list[str]:
    """Return runs of adjectives and nouns without the article, each phrase once."""
    words = split_words(caption)
    return _noun_phrases(words, tag(words))


def all_kinds(caption: str) -> dict[str, list[str]]:
    """Return the words of each of `KINDS`, tagging the caption once."""
    words = split_words(caption)
    written = _lexicon_tags(words)
    tags = _without_proper_nouns(words, written)
    return {
        "tagged_words": _tagged_words(words, written),
        "words": _nouns(words, tags),
        "phrases": _noun_phrases(words, tags),
    }


def _tagged_words(words: Sequence[str], tags: Sequence[str]) -> list[str]:
    return [word for word, t in zip(words, tags, strict=True) if t in _TAGS]


def _nouns(words: Sequence[str], tags: Sequence[str]) -> list[str]:
    tagged = zip(words, tags, strict=True)
    return _distinct([word for word, t in tagged if t in _TAGS and _is_word(word)])


def _noun_phrases(words: Sequence[str], tags: Sequence[str]) -> list[str]:
    letters = "".join(_letter(word, t) for word, t in zip(words, tags, strict=True))
    spans = [match.span() for match in _PHRASE.finditer(letters)]
    return _distinct([" ".join(words[start:end]) for start, end in spans])


def make_prompts(
    caption: str,
    num_nouns: int,
    rng: np.random.Generator,
    kind: str = "words",
    found: Sequence[str] | None = None,
) -> list[str]:
    """Return the prompts of `draw_prompts`."""
    return draw_prompts(caption, num_nouns, rng, kind, found)[0]


def draw_prompts(
    caption: str,
    num_nouns: int,
    rng: np.random.Generator,
    kind: str = "words",
    found: Sequence[str] | None = None,
) -> tuple[list[str], list[str]]:
    """Draw words of the caption without replacement and put each into a random template.

    Args:
      caption: the text, not cleaned.
      num_nouns: K, the number of prompts.
      rng: source of the draws; the same state gives the same prompts.
      kind: "tagged_words" (nouns and verbs, as published), "words" (each once, real words only) or
        "phrases" (noun phrases).
      found: the nouns or phrases of the caption, if known; saves the tagging.

    Returns:
      K texts, and the word in each. The caption fills up where it has fewer than K words.

    Raises:
      ValueError: the kind is unknown.
    """
    if kind not in KINDS:
        expected = " or ".join(map(repr, KINDS))
        raise ValueError(f"config.data.noun_kind: {kind!r} found, expected {expected}")
    if num_nouns == 0:
        return [], []
    if found is None:
        find = {"tagged_words": tagged_words, "words": nouns, "phrases": noun_phrases}
        found = find[kind](caption)
    templates = clip_templates()
    # A permutation draws without replacement, and from fewer words than wanted as well.
    chosen = [found[i] for i in rng.permutation(len(found))[:num_nouns]]
    drawn = rng.integers(len(templates), size=len(chosen))
    prompts = [templates[i].format(word) for i, word in zip(drawn, chosen, strict=True)]
    fill = [caption] * (num_nouns - len(prompts))
    return prompts + fill, chosen + fill


def split_words(caption: str) -> list[str]:
    """Split a caption into words and single punctuation marks, as the Penn Treebank does."""
    return _WORD.findall(clean_text(caption))


def tag(words: Sequence[str]) -> list[str]:
    """Return the Penn Treebank tag of each word (none of which contains white space).

    Proper nouns of the lexicon are looked up again in lower case, because alt texts capitalise
    every word ("Gorgeous Black Bag"), adjectives too.
    """
    return _without_proper_nouns(words, _lexicon_tags(words))


def _without_proper_nouns(words: Sequence[str], tags: list[str]) -> list[str]:
    if not any(t.startswith("NNP") for t in tags):
        return tags
    lower = _lexicon_tags([word.lower() for word in words])
    return [low if t.startswith("NNP") else t for t, low in zip(tags, lower, strict=True)]


@functools.cache
def clip_templates() -> tuple[str, ...]:
    """Return CLIP's 80 ImageNet templates, each with one `{}` for the name."""
    text = importlib.resources.files(__package__).joinpath("clip_templates.txt").read_text("utf-8")
    return tuple(line for line in text.splitlines() if not line.startswith("#"))


def _is_word(word: str) -> bool:
    return len(word) > 1 and word[0].isalnum() and not word.isdigit()


def _letter(word: str, tag: str) -> str:
    if tag.startswith("NN"):
        return "N" if _is_word(word) else "."
    return _LETTER.get(tag, ".")


def _distinct(words: Sequence[str]) -> list[str]:
    first: dict[str, str] = {}
    for word in words:
        first.setdefault(word.casefold(), word)
    return list(first.values())


def _lexicon_tags(words: Sequence[str]) -> list[str]:
    if not words:
        return []
    with _loading:  # a half-loaded lexicon gives wrong tags
        tagger = _load_tagger()
    # Joined and split at spaces again, so that there is one tag for each of our words.
    return [t for _, t in tagger.tag(" ".join(words), tokenize=False)]


@functools.cache
def _load_tagger() -> Any:
    # Imported here because it takes over a second, and runs with K=0 don't need it.
    from textblob.taggers import PatternTagger

    tagger = PatternTagger()
    tagger.tag("a", tokenize=False)  # reads the lexicon
    return tagger
