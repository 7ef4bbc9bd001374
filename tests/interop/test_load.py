import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece

from configs import base
from groupvit_jax.data.text import tokenizers
from groupvit_jax.data.text.vocabulary import read_vocabulary
from groupvit_jax.interop import load_pretrained
from groupvit_jax.interop.load import find_kind
from groupvit_jax.interop.model_config import make_model_config
from groupvit_jax.interop.pretrained import with_image_size
from groupvit_jax.interop.save import save_pretrained
from groupvit_jax.runs.configuration import config_from_dict, write_config
from groupvit_jax.runs.layout import CHECKPOINTS
from groupvit_jax.runs.manifest import write_manifest
from groupvit_jax.train.checkpointer import Checkpointer, CheckpointSettings
from groupvit_jax.train.state import TrainState
from tests.interop import weights


def write_run(directory, pretrained, steps=(3,)):
    """A run's folder as training leaves it; the last step has these weights, the others zeros."""
    config = base.get_config()
    config.model = pretrained.model_config
    checkpoints = Checkpointer(
        directory / CHECKPOINTS, CheckpointSettings(), config.to_dict(), pretrained.tokenizer
    )
    for step in steps:
        factor = np.float32(step == steps[-1])
        arrays = jax.tree.map(factor.__mul__, pretrained.variables)
        state = TrainState(
            step=jnp.int32(step),
            **jax.tree.map(jnp.asarray, arrays),
            opt_state=(jnp.zeros(3),),
            key=jax.random.key(0),
        )
        checkpoints.save(step, state, {}, {})
    checkpoints.close()
    write_config(config.to_dict(), directory)


def write_any(kind, path, pretrained):
    path = path / "model.pth" if kind == "original" else path
    if kind == "orbax":
        write_run(path, pretrained)
    else:
        save_pretrained(path, pretrained, kind)
    return path


@pytest.mark.parametrize("kind", ["orbax", "safetensors", "huggingface", "original"])
def test_every_kind_is_found_and_gives_the_same_bits(tmp_path, small, assert_identical, kind):
    path = write_any(kind, tmp_path, small)
    assert find_kind(path) == kind
    assert_identical(load_pretrained(str(path)), small)


def test_a_run_its_checkpoints_and_a_step_are_all_accepted(tmp_path, small, assert_identical):
    write_run(tmp_path, small, steps=(9, 10))
    for path in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "10"):
        assert_identical(load_pretrained(path), small)
    earlier = weights.flat(load_pretrained(tmp_path / "checkpoints" / "9"))
    assert not any(array.any() for array in earlier.values())


def test_a_damaged_last_step_is_passed_over(tmp_path, small):
    write_run(tmp_path, small, steps=(9, 10))
    content = tmp_path / "checkpoints" / "10" / "model" / "_METADATA"
    content.write_text(content.read_text()[:-1])
    earlier = weights.flat(load_pretrained(tmp_path))
    assert not any(array.any() for array in earlier.values())
    with pytest.raises(ValueError, match=r"10/model/_METADATA: \d+ bytes found, expected"):
        load_pretrained(tmp_path / "checkpoints" / "10")


def test_a_relative_run_is_accepted(tmp_path, small, assert_identical, monkeypatch):
    write_run(tmp_path / "runs", small)
    monkeypatch.chdir(tmp_path)
    assert_identical(load_pretrained("runs"), small)


def test_a_step_of_another_configuration_names_the_tensor(tmp_path, small):
    write_run(tmp_path, small)
    path = tmp_path / "checkpoints" / "3" / "config" / "metadata"
    path.write_text(path.read_text().replace('"width": 32', '"width": 16'))
    write_manifest(tmp_path / "checkpoints" / "3")
    with pytest.raises(ValueError, match=r"3/model: tensor 'params/.*' has shape .*, expected"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["orbax", "safetensors", "huggingface", "original"])
def test_the_tokenizer_travels_with_a_folder(tmp_path, kind):
    captions = ["a red dog", "a blue boat on the water", "two green birds"]
    model = tmp_path / "captions.model"
    model.write_bytes(tokenizers.train_sentencepiece(captions, 280))
    config = weights.small_config()
    config.text.update(vocab_size=280, end_of_text_id=3)
    pretrained = weights.random_pretrained(config)
    pretrained = pretrained._replace(tokenizer=read_vocabulary("sentencepiece", str(model)))
    path = write_any(kind, tmp_path / "export", pretrained)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model)).encode(captions)
    model.unlink()
    (tmp_path / "export").rename(tmp_path / "moved")
    found = load_pretrained(tmp_path / "moved" / path.relative_to(tmp_path / "export"))
    assert found.tokenizer == pretrained.tokenizer
    rows = tokenizers.make_tokenizer(found.tokenizer, 32)(captions)
    for row, expected in zip(rows.tolist(), pieces, strict=True):
        assert row[1 : 1 + len(expected) + 1] == [*expected, 3]  # start, text, end


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (None, None, "no checkpoint; expected"),
        ("config.json", "{}", "no checkpoint; expected"),
        ("config.json", "{", "not JSON"),
        ("config.json", "[]", "a JSON list, expected an object"),
        ("config.json", '{"model_type": "clip"}', "model_type 'clip', expected 'groupvit'"),
        ("config.json", '{"model_type": "bert"}', "goes into config.text_init_from"),
    ],
)
def test_something_else_is_refused(tmp_path, name, content, message):
    if name:
        (tmp_path / name).write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load_pretrained(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_path_to_nothing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none: no such file or directory"):
        load_pretrained(tmp_path / "none")


def test_an_imported_configuration_has_the_fields_of_the_published_one():
    assert make_model_config({}, {}, {}) == weights.published_config()


def test_a_configuration_survives_json():
    config = base.get_config().model
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_positions_are_resized_as_pytorch_does(small):
    torch = pytest.importorskip("torch")
    resized = with_image_size(small, 48)
    assert resized.model_config.image.image_size == 48
    table = small.variables["params"]["image_encoder"]["position_embedding"]
    image = torch.from_numpy(np.array(table)).reshape(1, 8, 8, 32).movedim(3, 1)
    expected = torch.nn.functional.interpolate(image, size=(12, 12), mode="bicubic")
    found = resized.variables["params"]["image_encoder"]["position_embedding"]
    np.testing.assert_allclose(found, expected.movedim(1, 3).reshape(1, 144, 32), atol=2e-6)


def test_a_size_that_the_patch_does_not_divide_is_refused(small):
    with pytest.raises(ValueError, match=r"model\.image\.image_size: 33"):
        with_image_size(small, 33)
