import json

import pytest

from groupvit_jax.data.text.vocabulary import CLIP, Vocabulary, to_json
from groupvit_jax.runs import checkpoints
from groupvit_jax.train.checkpointer import Checkpointer
from tests.train import toy
from tests.train.test_checkpointer import POSITION, settings


def make_step(directory, name, vocabulary=None):
    """The folders of a step without its arrays."""
    (directory / name / "model").mkdir(parents=True)
    if vocabulary is not None:
        (directory / name / "tokenizer").mkdir()
        text = json.dumps(to_json(vocabulary))
        (directory / name / "tokenizer" / "metadata").write_text(text)
    return directory / name


def test_a_run_its_checkpoints_and_a_step_name_a_step(tmp_path, monkeypatch):
    steps = [make_step(tmp_path / "checkpoints", name) for name in ("9", "10")]
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path, tmp_path / "checkpoints", steps[1], type(tmp_path)(".")):
        assert checkpoints.find_step(path) == steps[1]
    assert checkpoints.find_step(steps[0]) == steps[0]


@pytest.mark.parametrize("name", ["5.orbax-checkpoint-tmp", "5-copy", "model", "٣x"])
def test_what_is_no_whole_step_is_passed_over(tmp_path, name):
    assert checkpoints.find_step(tmp_path) is None
    make_step(tmp_path / "checkpoints", name)
    (tmp_path / "checkpoints" / "7").mkdir()  # without a model
    assert checkpoints.find_step(tmp_path) is None


def test_the_vocabulary_is_that_of_the_last_step(tmp_path):
    assert checkpoints.last_vocabulary(tmp_path) is None
    make_step(tmp_path / "checkpoints", "9", CLIP)
    newer = Vocabulary("sentencepiece", b"content")
    make_step(tmp_path / "checkpoints", "10", newer)
    assert checkpoints.last_vocabulary(tmp_path) == newer
    make_step(tmp_path / "checkpoints", "11")  # as before checkpoints held a vocabulary
    assert checkpoints.last_vocabulary(tmp_path) is None


def test_a_damaged_vocabulary_is_named(tmp_path):
    step = make_step(tmp_path / "checkpoints", "3", CLIP)
    (step / "tokenizer" / "metadata").write_text('{"name"')
    with pytest.raises(ValueError, match=r"3/tokenizer/metadata: not JSON"):
        checkpoints.last_vocabulary(tmp_path)


def test_the_trainers_steps_hold_what_the_layout_says(tmp_path):
    state = toy.on_mesh(toy.make_mesh(4, 2), toy.init_state(seed=3))
    config = {"model": {"depths": [1, 2]}, "seed": 5}
    trainer = Checkpointer(tmp_path / "checkpoints", settings(), config, CLIP)
    trainer.save(3, state, POSITION, {"loss": 1.5})
    trainer.close()
    step = checkpoints.find_step(tmp_path)
    items = {*checkpoints.ARRAY_ITEMS, *checkpoints.JSON_ITEMS, "metrics"}
    assert {path.name for path in step.iterdir() if path.is_dir()} == items
    assert checkpoints.read_config(step).to_dict() == {"model": {"depths": (1, 2)}, "seed": 5}
    assert checkpoints.stored_vocabulary(step) == CLIP
    model = {"params": state.params, "batch_stats": state.batch_stats}
    toy.assert_same(checkpoints.read_model(step), model)
