import dataclasses
import json

import numpy as np
import pytest

from groupvit_jax.data.text import caption_tokens
from groupvit_jax.data.text.tokenizers import ClipTokenizer
from groupvit_jax.prepare import packed_rows
from groupvit_jax.prepare.preparation import Options, prepare
from groupvit_jax.prepare.runners import local_runner
from tests.data.shard_files import encode

# Each word is one token of CLIP's and tagged as a noun; start and end make 77.
LONG = " ".join(["dog", "cat", "tree", "boat", "house"] * 15)


def lost(key, caption, tokenizer=None):
    found = caption_tokens.annotate([caption], None)["nouns"]
    return packed_rows.lost_prompts(key, [caption], found, tokenizer)


def test_a_caption_of_77_tokens_leaves_no_room_at_80_and_some_further_on():
    """A prompt has at least 5 tokens and, by CLIP's templates, at most 17."""
    for key in map(str, range(20)):
        counts = lost(key, LONG)
        assert counts[:1] == [3]
        assert counts == sorted(counts, reverse=True)
        assert counts[packed_rows.LENGTHS.index(136)] == 0


def test_short_captions_lose_none():
    assert lost("0", "a dog beside a boat") == [0] * len(packed_rows.LENGTHS)


def test_the_tokenizer_of_the_shards_decides():
    short = dataclasses.replace(ClipTokenizer(), context_length=512)
    assert lost("0", LONG, short) == lost("0", LONG)


@pytest.mark.parametrize(
    ("by_length", "says"),
    [
        ({}, "packed_length=80: 0.00% of 300"),
        ({80: 2}, "packed_length=80: 0.67% of 300"),
        ({80: 90, 88: 30, 96: 2}, "30.00% of 300; under 1 % from 96 on: train with --config.data."),
        (dict.fromkeys(packed_rows.LENGTHS, 3), "80: 1.00% of 300; at 144 still 1.00%"),
    ],
)
def test_the_sentence_names_the_share_and_the_length_that_suffices(by_length, says):
    counts = np.array([by_length.get(length, 0) for length in packed_rows.LENGTHS])
    records = [{"packed_rows": packed_rows.as_dict(60, counts)}, {"of": "an older version"}]
    records.append({"packed_rows": packed_rows.as_dict(40, 0 * counts)})
    assert says in packed_rows.sentence(packed_rows.add_up(records))


def test_shards_made_before_the_counts_existed_say_nothing():
    assert packed_rows.sentence(packed_rows.add_up([{}])) == ""


def test_the_manifest_counts_lost_prompts_the_same_on_any_machine(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.jpg").write_bytes(encode(value=20 * i))
    rows = [f"{i}.jpg,{LONG if i % 2 else 'a dog'}" for i in range(4)]
    (tmp_path / "a.csv").write_text("\n".join(["image,caption", *rows]))
    found = []
    for shard in (1, 4):
        options = Options(str(tmp_path / "a.csv"), str(tmp_path / f"out{shard}"), str(tmp_path))
        options = dataclasses.replace(options, samples_per_shard=shard)
        found.append(prepare(options, local_runner(1)))
        assert found[-1] == json.loads((tmp_path / f"out{shard}/manifest.json").read_text())
    assert found[0]["packed_rows"]["prompts"] == found[1]["packed_rows"]["prompts"] == 12
    assert found[0]["packed_rows"]["lost"]["80"] == found[1]["packed_rows"]["lost"]["80"] == 6
