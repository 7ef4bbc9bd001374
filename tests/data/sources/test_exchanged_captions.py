from collections import Counter

import pytest

from groupvit_jax.data.sources.exchanged_captions import ExchangedCaptions
from groupvit_jax.data.sources.pairs import WebDatasetSource
from tests.data.shard_files import write_pairs


@pytest.mark.parametrize("count", [2, 7])
def test_images_keep_their_keys_and_captions_are_all_others(tmp_path, count):
    write_pairs(tmp_path / "0.tar", range(count))
    source = WebDatasetSource([str(tmp_path / "0.tar")])
    exchanged = ExchangedCaptions(source)
    own, found = ([s[i] for i in range(len(s))] for s in (source, exchanged))
    assert [s["image"] for s in found] == [s["image"] for s in own]
    assert [s["key"] for s in found] == [s["key"] for s in own]
    assert all(a["captions"] != b["captions"] for a, b in zip(own, found, strict=True))
    assert Counter(tuple(s["captions"]) for s in own) == Counter(
        tuple(s["captions"]) for s in found
    )
    assert exchanged.locate(1) == source.locate(1)
