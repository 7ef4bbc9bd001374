import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import base
from groupvit_jax.data.images.decode import decode
from groupvit_jax.data.pipeline.contrastive import (
    BrokenSampleMonitor,
    TooManyBrokenSamplesError,
    TrainLoader,
    make_train_examples,
    transform_pair,
)
from groupvit_jax.data.text.tokenizers import ClipTokenizer, text_id
from tests.data.shard_files import encode, pair, write_broken, write_pairs, write_tar
from tests.waiting import wait_until


@dataclass(frozen=True)
class NumberTokenizer:
    """The numbers in a text."""

    vocab_size: int = 1000
    context_length: int = 2
    end_of_text_id: int = 999

    def __call__(self, texts):
        return np.array([[int(text.split()[1]), self.end_of_text_id] for text in texts], np.int32)


def small_transform(image: bytes, rng: np.random.Generator) -> np.ndarray:
    """Keeps the grey value in one channel and a draw of the generator in another."""
    pixels = decode(image)[:2, :2].copy()
    pixels[..., 1] = rng.integers(256)
    return pixels


def make_config(tmp_path, num_pairs=50, batch_size=8, num_workers=0, seed=0) -> ConfigDict:
    config = base.get_config()
    half = num_pairs // 2
    write_pairs(tmp_path / "a.tar", range(half))
    write_pairs(tmp_path / "b.tar", range(half, num_pairs))
    config.data.sources.a = dict(kind="webdataset", pattern=f"{tmp_path}/a.tar")
    config.data.sources.b = dict(kind="webdataset", pattern=f"{tmp_path}/b.tar")
    config.data.num_nouns = 0
    config.data.num_workers = num_workers
    config.train.batch_size = batch_size
    config.seed = seed
    return config


def take(config, num_batches, **options) -> list[dict[str, np.ndarray]]:
    transform = options.pop("image_transform", small_transform)
    tokenizer = options.pop("tokenizer", NumberTokenizer())
    examples = make_train_examples(
        config.data,
        tokenizer,
        image_size=config.model.image.image_size,
        seed=config.seed,
        image_transform=transform,
    )
    workers = config.data.num_workers
    loader = TrainLoader(examples, config.train.batch_size, num_workers=workers, **options)
    batches = [next(loader) for _ in range(num_batches)]
    loader.close()
    return batches


def join(batches) -> dict[str, np.ndarray]:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


# Order


@pytest.mark.parametrize("host_count", [2, 4])
def test_hosts_share_the_batches_of_one(tmp_path, host_count):
    config = make_config(tmp_path)
    expected = take(config, 8)
    hosts = [take(config, 8, host_index=h, host_count=host_count) for h in range(host_count)]
    assert_same([join(parts) for parts in zip(*hosts, strict=True)], expected)


@pytest.mark.parametrize("start_step", [1, 6, 7])
def test_restart_at_any_step_continues_the_sequence(tmp_path, start_step):
    config = make_config(tmp_path)
    resumed = take(config, 9 - start_step, start_step=start_step)
    assert_same(resumed, take(config, 9)[start_step:])


def test_restart_on_another_number_of_hosts(tmp_path):
    config = make_config(tmp_path)
    parts = [take(config, 2, host_index=h, host_count=2, start_step=5) for h in range(2)]
    assert_same([join(hosts) for hosts in zip(*parts, strict=True)], take(config, 7)[5:])


def test_workers_deliver_the_same_batches(tmp_path):
    config = make_config(tmp_path, batch_size=96)  # two parts of a batch
    expected = take(config, 4, start_step=3)
    config.data.num_workers = 2
    assert_same(take(config, 4, start_step=3), expected)


def test_epochs_cover_every_pair_once_without_a_remainder(tmp_path):
    batches = join(take(make_config(tmp_path), 25))
    for epoch in range(4):
        assert sorted(batches["index"][50 * epoch : 50 * (epoch + 1)]) == list(range(50))
    np.testing.assert_array_equal(batches["text"][:, 0], batches["index"])
    assert np.abs(batches["image"][:, 0, 0, 0].astype(int) - batches["index"]).max() <= 1


def test_epochs_differ_in_order_and_augmentation(tmp_path):
    batches = join(take(make_config(tmp_path), 25))
    first, second = batches["index"][:50], batches["index"][50:100]
    assert (first != second).any()
    draws = batches["image"][:, 0, 0, 1]
    assert (draws[np.argsort(first)] != draws[50 + np.argsort(second)]).mean() > 0.9


def test_another_seed_is_another_sequence(tmp_path):
    one, other = (join(take(make_config(tmp_path, seed=seed), 3)) for seed in (0, 1))
    assert (one["index"] != other["index"]).mean() > 0.5
    assert (one["image"][..., 1] != other["image"][..., 1]).mean() > 0.5


def test_weights_set_the_mixture(tmp_path):
    config = make_config(tmp_path, batch_size=10)
    config.data.sources.a.weight, config.data.sources.b.weight = 9.0, 1.0
    for batch in take(config, 5):
        assert (batch["index"] < 25).sum() == 9


# Content


def test_batch_of_the_real_transforms(tmp_path):
    config = make_config(tmp_path, batch_size=4)
    config.data.num_nouns = 3
    config.model.image.image_size = 32
    config.train.batch_size = 4
    [batch] = take(config, 1, image_transform=None, tokenizer=ClipTokenizer(77))
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "image": ((4, 32, 32, 3), "uint8"),
        "text": ((4, 80), "int32"),
        "text_ends": ((4, 4), "int32"),
        "text_ids": ((4, 4), "int32"),
        "text_overflow": ((4,), "int32"),
        "index": ((4,), "int32"),
        "broken": ((4,), "int32"),
    }


def test_ids_tell_words_and_captions_apart():
    def ids_of(caption, packed_length=64):
        example = transform_pair(
            {"image": b"", "captions": [caption]},
            np.random.default_rng(0),
            images=lambda sample, rng: {"image": np.zeros((2, 2, 3), np.uint8)},
            tokenizer=ClipTokenizer(16),
            num_nouns=2,
            noun_kind="words",
            packed_length=packed_length,
        )
        assert example["text_ids"].dtype == np.int32
        return example["text_ids"].tolist()

    dog, grass = text_id("dog"), text_id("grass")
    caption = "A dog on the grass"
    assert ids_of(caption)[0] == ids_of(caption.upper())[0] == text_id(caption)
    assert set(ids_of(caption)[1:]) == {dog, grass}
    assert ids_of("the big Dog") == [text_id("the big dog"), dog, text_id("the big dog")]
    # What does not fit is the caption, whatever its word.
    assert ids_of(caption, packed_length=8) == [text_id(caption)] * 3


def test_a_caption_is_drawn_each_epoch(tmp_path):
    metadata = b'{"captions": ["a 0", "a 1", "a 2"]}'
    shard = write_tar(tmp_path / "x.tar", [("0", {"jpg": encode(), "json": metadata})])
    config = base.get_config()
    config.data.sources.x = dict(kind="webdataset", pattern=shard)
    config.data.num_nouns, config.data.num_workers, config.train.batch_size = 0, 0, 100
    [batch] = take(config, 1)
    counts = np.bincount(batch["text"][:, 0], minlength=3)
    assert counts.sum() == 100
    assert counts.min() > 15


WORKER_PROGRAM = """
import os, signal, sys
from groupvit_jax.data.pipeline.contrastive import TrainLoader

class Examples:
    def read(self, positions):
        return [{"pid": os.getpid()} for _ in positions]

if __name__ == "__main__":
    loader = TrainLoader(Examples(), 1, num_workers=None)
    worker = next(loader)["pid"][0]
    assert worker != os.getpid()
    print(worker, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_killed_parent(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(WORKER_PROGRAM)
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    with (tmp_path / "out").open("w+") as out:  # not a pipe: an orphan would keep it open
        subprocess.run([sys.executable, program], stdout=out, env=environment, check=False)
        worker = int((tmp_path / "out").read_text())
    wait_until(lambda: not _is_running(worker), explain=lambda: "the worker outlived its parent")


PLAIN_SCRIPT = """
import os
from groupvit_jax.data.pipeline.contrastive import TrainLoader

class Examples:
    def read(self, positions):
        return [{"pid": os.getpid()} for _ in positions]

print("started", flush=True)
loader = TrainLoader(Examples(), 1, num_workers=2)
workers = {int(next(loader)["pid"][0]) for _ in range(4)}
loader.close()
assert len(workers - {os.getpid()}) == 2, workers
assert __file__.endswith("script.py")
"""


def test_a_script_without_a_guard_can_start_workers(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(PLAIN_SCRIPT)
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    result = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "started\n"


def _is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/status")  # a zombie has ended
    return not (status.exists() and "State:\tZ" in status.read_text())


# Broken samples


def test_captions_with_bytes_that_are_no_utf8_are_used_counted_and_named(tmp_path, caplog):
    config = make_config(tmp_path, num_pairs=20, batch_size=20)
    samples = [(str(i), pair(i)) for i in range(10)]
    for _, sample in samples:
        sample["txt"] += b" caf\xe9"
    shard = write_tar(tmp_path / "a.tar", samples)
    [batch] = take(config, 1)
    assert batch["broken"].sum() == 0
    named = [text for text in caplog.messages if "aren't UTF-8" in text]
    assert len(named) == 2, "the first and the tenth"
    assert all(shard in text for text in named)
    assert "(10 such samples read by this worker)" in named[1]


def test_broken_samples_are_replaced_named_and_flagged(tmp_path, caplog):
    config = make_config(tmp_path, num_pairs=20, batch_size=20)
    shard = write_broken(tmp_path / "a.tar")
    [batch] = take(config, 1)
    assert batch["broken"].sum() == 4
    replaced = batch["index"][batch["broken"] == 1]
    assert set(replaced) <= {0, 1, 2, 7, 8, 9}, "replaced from the same source"
    np.testing.assert_array_equal(batch["text"][:, 0], batch["index"])
    for key, reason in [("4", "empty caption"), ("5", "no caption"), ("6", "unknown image format")]:
        assert f"{shard}: {key}: {reason}" in caplog.text
    assert f"{shard}: 3: " in caplog.text


def test_replacements_do_not_depend_on_hosts_or_workers(tmp_path):
    config = make_config(tmp_path, num_pairs=20, batch_size=20)
    write_broken(tmp_path / "a.tar")
    expected = take(config, 4)
    hosts = [take(config, 4, host_index=h, host_count=4) for h in range(4)]
    assert_same([join(parts) for parts in zip(*hosts, strict=True)], expected)
    config.data.num_workers = 1
    assert_same(take(config, 2, start_step=2), expected[2:])


def test_nothing_but_broken_samples_is_an_error(tmp_path):
    config = make_config(tmp_path)
    del config.data.sources["b"]
    write_tar(tmp_path / "a.tar", [(str(i), {"jpg": b"?", "txt": b"a 1"}) for i in range(3)])
    with pytest.raises(ValueError, match=r"100 broken samples in a row; the last: .*a\.tar: "):
        take(config, 1)


def test_monitor_stops_above_the_share():
    monitor = BrokenSampleMonitor(0.01, min_examples=1000)
    one = np.eye(1, 100, dtype=np.int32)[0]
    for _ in range(10):
        monitor.update(one)
    with pytest.raises(TooManyBrokenSamplesError, match=r"12 of 1100.*max_broken_fraction=0\.01"):
        monitor.update(one + np.roll(one, 3))


def test_monitor_tolerates_few_in_the_first_batch():
    monitor = BrokenSampleMonitor(0.01)
    monitor.update(np.array([1, 0, 0, 1]))
    assert (monitor.num_broken, monitor.num_examples) == (2, 4)


# Settings


def test_wrong_settings_are_named(tmp_path):
    config = make_config(tmp_path)
    with pytest.raises(ValueError, match="batch_size=8 can't be divided by 3 hosts"):
        take(config, 1, host_count=3)
    config.data.sources.a.weight = 1.0
    with pytest.raises(
        ValueError, match=r"sources\.b\.weight: None found, expected a positive number"
    ):
        take(config, 1)
    config.data.sources.b.weight = -1.0
    with pytest.raises(ValueError, match=r"sources\.b\.weight: -1\.0 found"):
        take(config, 1)
    config.data.sources = ConfigDict()
    with pytest.raises(ValueError, match=r"config\.data\.sources: empty"):
        take(config, 1)
