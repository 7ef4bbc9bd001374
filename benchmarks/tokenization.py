"""Token ids and speed of CLIP's and BERT's tokenizers against other implementations.

    pip install instant-clip-tokenizer  # wheels for Python 3.11 and 3.12 only
    python -m benchmarks.tokenization --vocab=DIR/vocab.txt --captions=a.csv --captions=b.tar

CLIP's is compared with instant-clip-tokenizer where that is installed, BERT's with transformers'
`BertTokenizer` (the extra `dev`) where --vocab is given; the references get cleaned texts. A set of
captions is a CSV or TSV with a header, COCO's JSON, or a tar shard. Rows are compared on the
captions, CLIP's templates, ImageNet's class names, prompts of both, and random strings.

Speed is counted in CPU time, in batches of four texts as in training (a caption and three prompts),
both implementations in turns. The first pass over the shuffled captions tells the cost of texts
never seen before, in quarters, because our tokenizers remember words; then the median of further
passes.
"""

import importlib.resources
import random
import re
import time
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
from absl import app, flags

from benchmarks.captions import read
from groupvit_jax.data.text.nouns import clip_templates
from groupvit_jax.data.text.packing import trim
from groupvit_jax.data.text.tokenizers import ClipTokenizer, Tokenizer, clean_text, make_tokenizer
from groupvit_jax.data.text.vocabulary import read_vocabulary

_VOCAB = flags.DEFINE_string("vocab", None, "a BERT's vocab.txt")
_CAPTIONS = flags.DEFINE_multi_string("captions", None, "CSV, TSV, JSON or tar", required=True)
_RANDOM_TEXTS = flags.DEFINE_integer("random_texts", 100_000, "strings of random characters")
_REPEATS = flags.DEFINE_integer("repeats", 5, "passes of each tokenizer")

LENGTH = 77
_MARKER = re.compile(r"<(start|end)_of_text>", re.IGNORECASE)
BATCH = 4

Ids = list[list[int]]
Encode = Callable[[Sequence[str]], Ids | np.ndarray]


def class_names() -> list[str]:
    classes = importlib.resources.files("groupvit_jax.data.eval_sets") / "classes" / "imagenet.txt"
    lines = classes.read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def random_texts(count: int) -> list[str]:
    """Return strings of characters that this Python's Unicode knows, from anywhere to plain."""
    known = [chr(i) for i in range(0x110000) if unicodedata.category(chr(i)) not in ("Cn", "Cs")]
    pools = [
        known,
        [c for c in known if ord(c) < 0x3000],
        [chr(i) for i in range(0x20, 0x7F)],
        list(" \t\n'\N{RIGHT SINGLE QUOTATION MARK}&;<>#_-.,!?aAeEsStTdDlLmM019"),
        [*(c for c in known if 0x1F300 <= ord(c) < 0x1F700), "\u200d", "\ufe0f"],
    ]
    rng = random.Random(0)

    def one() -> str:
        return "".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 80)))

    return [one() for _ in range(count)]


def rows_of(encoded: Ids | np.ndarray, end_id: int) -> Ids:
    """Return the ids up to the end of each text."""
    rows = map(list, encoded)
    return [row[: row.index(end_id) + 1] for row in rows]


def compare_ids(ours: Tokenizer, theirs: Encode, sets: dict[str, list[str]]) -> None:
    for name, texts in sets.items():
        end = ours.end_of_text_id
        found, expected = (rows_of(encode(texts), end) for encode in (ours, theirs))
        differing = sum(a != b for a, b in zip(found, expected, strict=True))
        print(f"  {name}: {len(texts):,} texts, {differing:,} rows differ")


def seconds_in_turns(encoders: Sequence[Encode], texts: Sequence[str]) -> np.ndarray:
    """Return the CPU time [encoders, 4] of each quarter of the texts."""
    seconds = np.zeros((len(encoders), 4))
    batches = [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)]
    for i, batch in enumerate(batches):
        for row, encode in zip(seconds, encoders, strict=True):
            start = time.process_time()
            encode(batch)
            row[i * 4 // len(batches)] += time.process_time() - start
    return seconds


def compare_speed(encoders: dict[str, Encode], texts: Sequence[str]) -> None:
    runs, quarter = list(encoders.values()), len(texts) / 4 / 1e3
    first = seconds_in_turns(runs, texts)
    later = [seconds_in_turns(runs, texts) for _ in range(_REPEATS.value)]
    later = np.median(later, axis=0).mean(axis=1)
    print(f"  {'thousand texts per second':<28}first pass, by quarter       later")
    for name, a, b in zip(encoders, first, later, strict=True):
        rates = "".join(f"{quarter / seconds:7.0f}" for seconds in a)
        print(f"  {name:<28}{rates}  {quarter / b:7.0f}")


def time_long_word(encode: Encode) -> None:
    rng = random.Random(0)
    # A single word: naive merging takes time quadratic in its length.
    text = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=2**20))
    start = time.process_time()
    encode([text])
    print(f"  a megabyte of letters: {time.process_time() - start:.2f} s")


def clip_reference() -> dict[str, Encode]:
    try:
        import instant_clip_tokenizer
    except ImportError:
        print("  instant-clip-tokenizer is not installed: nothing to compare with")
        return {}
    encoder = instant_clip_tokenizer.Tokenizer()

    def encode(texts: Sequence[str]) -> np.ndarray:
        # Where a caption spells a marker, it would be a token.
        texts = [_MARKER.sub(r"< \1_of_text >", clean_text(text)) for text in texts]
        return encoder.tokenize_batch(texts, context_length=LENGTH).astype(np.int32)

    return {"instant-clip-tokenizer": encode}


def bert_reference(vocab: str) -> dict[str, Encode]:
    from transformers import BertTokenizer  # slow to import

    reference = BertTokenizer(vocab)

    def encode(texts: Sequence[str]) -> Ids:
        cleaned = [clean_text(text) for text in texts]
        return reference(cleaned, truncation=True, max_length=LENGTH)["input_ids"]

    return {"transformers": encode}


def main(argv: list[str]) -> None:
    del argv
    captions = [caption for path in _CAPTIONS.value for caption in read(path)]
    random.Random(0).shuffle(captions)
    names = class_names()
    prompts = [
        template.format(name)
        for i, name in enumerate(names)
        for template in clip_templates()[i % 8 :: 8]
    ]
    sets = {
        "captions": captions,
        "templates": list(clip_templates()),
        "class names": names,
        "prompts of classes": prompts,
        "random characters": random_texts(_RANDOM_TEXTS.value),
    }
    tokenizers: dict[str, tuple[Tokenizer, dict[str, Encode]]]
    tokenizers = {"clip": (ClipTokenizer(LENGTH), clip_reference())}
    if _VOCAB.value:
        vocabulary = read_vocabulary("wordpiece", _VOCAB.value, _VOCAB.value)
        tokenizers["wordpiece"] = make_tokenizer(vocabulary, LENGTH), bert_reference(_VOCAB.value)
    for name, (ours, references) in tokenizers.items():
        print(name)
        start = time.process_time()
        ours([""])
        print(f"  reading the vocabulary: {time.process_time() - start:.2f} s")
        compare_speed({"ours": ours, **references}, captions)
        for theirs in references.values():
            compare_ids(ours, theirs, sets)
        rows = ours(captions)
        lengths = (rows == ours.end_of_text_id).argmax(axis=1) + 1
        print(
            f"  tokens of a caption: mean {lengths.mean():.1f}, 99 % within "
            f"{np.percentile(lengths, 99):.0f}, at most {lengths.max()}; trimmed to "
            f"{trim(rows).shape[1]}"
        )
        time_long_word(ours)


if __name__ == "__main__":
    app.run(main)
