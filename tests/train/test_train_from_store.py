"""Training from an object store is training from local files."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import tiny
from groupvit_jax.data.storage import objects, retries
from groupvit_jax.interop.load import load_pretrained
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
        config.data.cache_dir = ""
        url = "s3://pairs/runs/first"
        train(config, url)  # the run itself on the bucket, too
        [content] = objects.read_objects([f"{url}/metrics.jsonl"])
        lines = [json.loads(line) for line in content.decode().splitlines()]
        assert [line["loss"] for line in lines] == expected
        assert lines[-1]["goodput/stepping"] > 0
        assert {"config.json", "starts.jsonl", "REPEAT.txt"} <= set(objects.find_objects(url))
        found, whole = load_pretrained(url), load_pretrained(tmp_path / "local")
        jax.tree.map(np.testing.assert_array_equal, found.variables, whole.variables)
    assert waits
