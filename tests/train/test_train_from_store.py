"""Training from an object store is training from local files."""

import json
from pathlib import Path

import pytest

from configs import tiny
from groupvit_jax.data.storage import retries
from groupvit_jax.train.loop import train
from tests.data import object_store
from tests.data.shard_files import write_pairs


def losses_of(config, workdir):
    train(config, workdir)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def small_config(pattern):
    config = tiny.get_config()
    config.data.sources.pairs.pattern = pattern
    config.data.num_nouns = 0
    config.tensorboard = False
    config.train.update(num_steps=4, batch_size=8)
    config.log_every_steps = 1
    config.model.image.update(
        depths=(1, 1), num_group_tokens=(4, 0), num_output_groups=(4,), width=16
    )
    config.model.text.update(num_layers=1, width=16)
    return config


@pytest.mark.slow
def test_training_from_a_store_that_fails_now_and_then_has_the_same_losses(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user_cache"))
    for i in range(2):
        write_pairs(tmp_path / f"{i}.tar", range(20 * i, 20 * i + 20))
    expected = losses_of(small_config(f"{tmp_path}/*.tar"), tmp_path / "local")
    assert len(expected) == 4
    waits = []
    monkeypatch.setattr(retries, "RETRY", retries.Retry(sleep=waits.append))
    with object_store.serve() as store:
        for i in range(2):
            store.put(f"{i}.tar", Path(tmp_path / f"{i}.tar").read_bytes())
        config = small_config("s3://pairs/*.tar")
        store.fault = store.first(1, "503")
        assert losses_of(config, tmp_path / "ranges") == expected
        store.fault = store.first(1, "cut")
        config.data.cache_dir = str(tmp_path / "cache")
        assert losses_of(config, tmp_path / "cached") == expected
    assert waits
