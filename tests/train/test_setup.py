import pytest

from configs import tiny
from groupvit_jax import parallel
from groupvit_jax.data.text.tokenizers import ClipTokenizer, train_sentencepiece
from groupvit_jax.data.text.vocabulary import CLIP, read_vocabulary
from groupvit_jax.models import fused_attention
from groupvit_jax.models.image_encoder import ImageEncoder
from groupvit_jax.models.layers import attend
from groupvit_jax.runs.checkpoints import last_vocabulary
from groupvit_jax.runs.configuration import changed
from groupvit_jax.train.checkpointer import Checkpointer, CheckpointSettings
from groupvit_jax.train.setup import (
    by_device_setting,
    check_fused_attention,
    check_start_token,
    find_vocabulary,
    run_length,
)
from tests.devices import first_devices
from tests.train import toy

CAPTIONS = ["a red dog", "a blue boat on the water", "two green birds"]


@pytest.fixture
def config(tmp_path):
    config = tiny.get_config()
    path = tmp_path / "captions.model"
    path.write_bytes(train_sentencepiece(CAPTIONS, 280))
    config.data.tokenizer.update(name="sentencepiece", path=str(path))
    return config


def save(workdir, config, vocabulary, step=3):
    checkpointer = Checkpointer(workdir / "checkpoints", CheckpointSettings(), {}, vocabulary)
    checkpointer.save(step, toy.init_state(), {}, {})
    checkpointer.close()


def find(config, workdir):
    return find_vocabulary(config.data.tokenizer.name, config.data.tokenizer.path, workdir)


def vocabulary_of(config):
    return read_vocabulary(config.data.tokenizer.name, config.data.tokenizer.path)


def test_without_a_checkpoint_the_configured_file_is_read(tmp_path, config):
    assert find(config, tmp_path / "run") == vocabulary_of(config)
    save(tmp_path / "old", config, None)  # as before checkpoints held a vocabulary
    assert last_vocabulary(tmp_path / "old") is None
    assert find(config, tmp_path / "old") == vocabulary_of(config)


def test_a_run_goes_on_where_the_file_is_gone_or_elsewhere(tmp_path, config, caplog):
    vocabulary = vocabulary_of(config)
    save(tmp_path, config, vocabulary)
    moved = tmp_path / "moved.model"
    (tmp_path / "captions.model").rename(moved)
    assert find(config, tmp_path) == vocabulary
    assert "captions.model is gone: the checkpoint's vocabulary is used" in caplog.text
    config.data.tokenizer.path = str(moved)
    assert find(config, tmp_path) == vocabulary


def test_a_run_does_not_go_on_with_another_vocabulary(tmp_path, config):
    save(tmp_path, config, CLIP, step=1)
    save(tmp_path, config, vocabulary_of(config), step=12)
    other = train_sentencepiece([*CAPTIONS, "one two three"], 280)
    (tmp_path / "captions.model").write_bytes(other)
    message = r"config.data.tokenizer: sentencepiece with fingerprint \w+ found, but --workdir="
    with pytest.raises(ValueError, match=message):
        find(config, tmp_path)
    config.data.tokenizer.update(name="clip", path="")
    with pytest.raises(ValueError, match=r"tokenizer: clip with .* checkpoints of sentencepiece"):
        find(config, tmp_path)


class WithoutStart(ClipTokenizer):
    def __call__(self, texts):
        return super().__call__(texts)[:, 1:]


def test_the_first_token_of_a_caption_is_no_word():
    check_start_token(ClipTokenizer(8))
    with pytest.raises(
        ValueError, match=r"local_words: 'tokens' found with a vocabulary without a"
    ):
        check_start_token(WithoutStart(8))


@pytest.mark.parametrize(
    ("platforms", "changes", "message"),
    [
        (["tpu", "gpu"], {}, "True found on cpu, expected one of tpu, gpu"),
        (
            ["cpu"],
            {"train.micro_batch_size": 8},
            "True found with config.train.micro_batch_size and 2 tensor shards",
        ),
        (
            ["cpu"],
            {"parallel.reduce_dtype": "float32"},
            "True found with config.parallel.reduce_dtype 'float32' and 2 tensor shards",
        ),
        (["cpu"], {}, "True found with 3 heads on 2 tensor shards"),
    ],
)
def test_attention_that_can_not_be_fused(platforms, changes, message, monkeypatch):
    mesh = parallel.make_mesh({"data": -1, "fsdp": 1, "tensor": 2}, first_devices(2))
    monkeypatch.setattr(fused_attention, "KERNELS", dict.fromkeys(platforms, attend))
    encoder = ImageEncoder(width=33, num_heads=3)
    config = changed(tiny.get_config(), changes)
    by_device = by_device_setting(config.train.micro_batch_size, config.parallel.reduce_dtype)
    with pytest.raises(ValueError, match=rf"^config\.model\.fused_attention: {message}"):
        check_fused_attention(encoder, mesh, by_device)


def test_a_run_has_so_many_steps_or_epochs():
    assert run_length(1000, 16, None, 30.0) == 1875
    assert run_length(1000, 16, 7, 30.0) == 7
