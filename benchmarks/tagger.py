"""Accuracy and speed of the tagger that picks the nouns (results in docs/text.md).

python -m benchmarks.tagger [--gold=FILE.tsv] [--captions=FILE.txt]
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from groupvit_jax.data.text import nouns

GOLD = Path(__file__).parents[1] / "tests" / "data" / "text" / "tagger_gold.tsv"
Gold = list[list[tuple[str, str]]]


def read_gold(path: Path) -> Gold:
    """Read captions of (word, class), class N noun, V verb, O other or ? (not counted)."""
    blocks = path.read_text("utf-8").split("\n\n")
    lines = [[line for line in block.splitlines() if not line.startswith("#")] for block in blocks]
    return [[(row.split("\t")[0], row.split("\t")[1]) for row in block] for block in lines if block]


def accuracy(gold: Gold, tag: Callable[[Sequence[str]], list[str]]) -> tuple[float, float, int]:
    """Return (share with noun-or-verb right, share with noun/verb/other right, words counted)."""
    usable, exact = [], []
    for caption in gold:
        for (word, expected), found in zip(caption, tag([w for w, _ in caption]), strict=True):
            if expected == "?" or not word[0].isalpha():
                continue
            found = {"NN": "N", "VB": "V"}.get(found[:2] if found != "NNPS" else "", "O")
            usable.append((found == "O") == (expected == "O"))
            exact.append(found == expected)
    return float(np.mean(usable)), float(np.mean(exact)), len(usable)


def captions_per_second(captions: Sequence[str], function: Callable[[str], object]) -> float:
    """Return the median rate of 5 passes over the captions."""
    rates = []
    for _ in range(5):
        start = time.perf_counter()
        for caption in captions:
            function(caption)
        rates.append(len(captions) / (time.perf_counter() - start))
    return float(np.median(rates))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gold", type=Path, default=GOLD)
    parser.add_argument("--captions", type=Path, help="one caption a line; the gold ones if absent")
    flags = parser.parse_args()
    gold = read_gold(flags.gold)
    usable, exact, count = accuracy(gold, nouns.tag)
    print(f"words {count}  noun-or-verb {usable:.1%}  noun/verb/other {exact:.1%}")
    captions = [" ".join(word for word, _ in caption) for caption in gold] * 50
    if flags.captions:
        captions = flags.captions.read_text("utf-8").splitlines()
    rng = np.random.default_rng(0)
    rate = captions_per_second(captions, nouns.nouns)
    print(f"nouns {rate:,.0f} captions/s")
    rate = captions_per_second(captions, lambda c: nouns.make_prompts(c, 3, rng))
    print(f"prompts (K=3) {rate:,.0f} captions/s")


if __name__ == "__main__":
    main()
