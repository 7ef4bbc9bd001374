"""WordPiece against transformers' `BertTokenizer`: the ids, the tokens of a caption, the speed.

    python -m benchmarks.wordpiece --vocab=DIR/vocab.txt --captions=captions.csv

Needs the extra `dev`. A set is a CSV or TSV with a header, captions in COCO's JSON, or a tar shard.
"""

import time

import numpy as np
from absl import app, flags

from benchmarks.captions import read
from groupvit_jax.data.text.tokenizers import (
    ClipTokenizer,
    clean_text,
    make_tokenizer,
    trim,
)
from groupvit_jax.data.text.vocabulary import read_vocabulary

_VOCAB = flags.DEFINE_string("vocab", None, "a BERT's vocab.txt", required=True)
_CAPTIONS = flags.DEFINE_multi_string("captions", None, "CSV, TSV, JSON or tar", required=True)
_REPEATS = flags.DEFINE_integer("repeats", 5, "runs of each tokenizer")

LENGTH = 77


def main(argv: list[str]) -> None:
    del argv
    from transformers import BertTokenizer  # slow to import

    ours = make_tokenizer(read_vocabulary("wordpiece", _VOCAB.value, _VOCAB.value), LENGTH)
    reference = BertTokenizer(_VOCAB.value)

    def theirs(texts: list[str]) -> list[list[int]]:
        cleaned = [clean_text(text) for text in texts]
        return reference(cleaned, truncation=True, max_length=LENGTH)["input_ids"]

    captions = [caption for path in _CAPTIONS.value for caption in read(path)]
    rows = ours(captions)
    lengths = (rows == ours.end_of_text_id).argmax(axis=1) + 1
    found = [row[:length].tolist() for row, length in zip(rows, lengths, strict=True)]
    differing = sum(a != b for a, b in zip(found, theirs(captions), strict=True))
    print(f"{len(captions):,} captions, {differing} rows differ from transformers'")
    print(
        f"tokens: mean {lengths.mean():.1f}, 99 % within {np.percentile(lengths, 99):.0f}, "
        f"at most {lengths.max()}; trimmed to {trim(rows).shape[1]}"
    )
    tokenizers = {"transformers": theirs, "wordpiece": ours, "clip": ClipTokenizer(LENGTH)}
    seconds = {name: np.zeros(_REPEATS.value) for name in tokenizers}
    for i in range(_REPEATS.value):
        for name, tokenize in tokenizers.items():
            start = time.process_time()
            tokenize(captions)
            seconds[name][i] = time.process_time() - start
    base = np.median(seconds["transformers"])
    for name, each in seconds.items():
        rate = len(captions) / np.median(each)
        print(f"{name}: {rate:,.0f} captions per second of CPU, {base / np.median(each):.2f} x")


if __name__ == "__main__":
    app.run(main)
