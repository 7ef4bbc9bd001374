import json
import logging
import shutil

import pytest

from groupvit_jax.data.text.vocabulary import CLIP, Vocabulary, to_json
from groupvit_jax.runs import checkpoints, manifest
from groupvit_jax.train.checkpointer import Checkpointer
from tests.train import toy
from tests.train.test_checkpointer import POSITION, settings


def make_step(directory, name, vocabulary=None):
    """The folders of a step without its arrays."""
    (directory / name / "model").mkdir(parents=True)
    (directory / name / manifest.STEP_METADATA).write_text("{}")
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


@pytest.fixture
def steps(tmp_path):
    """Whole steps 3 and 12 of a run without arrays."""
    made = [make_step(tmp_path / "checkpoints", name, CLIP) for name in ("3", "12")]
    for step in made:
        (step / "model" / "array").write_text(step.name)
        (step / "training").mkdir()
        (step / "training" / "array").write_text(step.name)
        manifest.write_manifest(step)
    return made


def test_readers_take_the_last_whole_step_say_so_and_rename_nothing(steps, tmp_path, caplog):
    assert checkpoints.find_whole_step(tmp_path) == steps[1]
    assert "passed over" not in caplog.text
    caplog.clear()
    (steps[1] / "model" / "array").write_text("21")
    (tmp_path / "checkpoints" / "15").mkdir()
    with caplog.at_level(logging.WARNING):
        assert checkpoints.find_whole_step(tmp_path) == steps[0]
    assert len(caplog.messages) == 3
    assert "checkpoints/15/_CHECKPOINT_METADATA: no such file" in caplog.messages[0]
    assert "checkpoints/12/model/array: differs" in caplog.messages[1]
    assert caplog.messages[2] == f"step 3 is read ({steps[0]})"
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"3", "12", "15"}


def test_a_step_asked_for_by_its_path_is_not_replaced_by_another(steps):
    (steps[1] / "model" / "array").write_text("21")
    with pytest.raises(ValueError, match=r"12/model/array: differs .* restore a copy"):
        checkpoints.find_whole_step(steps[1])


def test_inference_does_not_read_the_optimizer_state(steps, tmp_path):
    (steps[1] / "training" / "array").write_text("21")
    assert checkpoints.find_whole_step(tmp_path) == steps[1]


def test_a_copy_of_a_step_under_any_name_is_one(steps, tmp_path):
    shutil.copytree(steps[0], tmp_path / "best")
    assert checkpoints.find_whole_step(tmp_path / "best") == tmp_path / "best"


def test_damaged_steps_are_set_aside_with_their_content(steps, tmp_path):
    assert checkpoints.set_aside_damaged(tmp_path / "checkpoints") == []
    (steps[1] / "training" / "array").write_text("21")
    (tmp_path / "checkpoints" / "15").mkdir()
    (tmp_path / "checkpoints" / "12.damaged").mkdir()
    empty, flipped = checkpoints.set_aside_damaged(tmp_path / "checkpoints")
    assert empty.endswith("set aside as 15.damaged")
    assert flipped.startswith(f"{steps[1]}/training/array: differs")
    assert flipped.endswith("set aside as 12.damaged2")
    assert (tmp_path / "checkpoints/12.damaged2/training/array").read_text() == "21"
    assert checkpoints.set_aside_damaged(tmp_path / "checkpoints") == []


def test_metrics_of_older_steps_are_verified_because_every_resume_reads_them(steps, tmp_path):
    (steps[0] / "model" / "array").write_text("5")  # will be verified when it is restored
    assert checkpoints.set_aside_damaged(tmp_path / "checkpoints") == []
    (steps[0] / "metrics").mkdir()
    (steps[0] / "metrics" / "metrics").write_text("{}")
    manifest.write_manifest(steps[0])
    (steps[0] / "metrics" / "metrics").write_text("{]")
    assert len(checkpoints.set_aside_damaged(tmp_path / "checkpoints")) == 1


def test_without_a_whole_step_nothing_is_renamed(steps, tmp_path):
    for step in steps:
        (step / "model" / "array").unlink()
    message = r"no whole step found \(.*/12/model/array: No such file.*/3/model.*\), restore"
    with pytest.raises(ValueError, match=message):
        checkpoints.set_aside_damaged(tmp_path / "checkpoints")
    assert all(step.exists() for step in steps)


def test_a_step_of_an_older_version_is_taken_with_a_warning(steps, tmp_path, caplog):
    (steps[1] / manifest.MANIFEST).unlink()
    assert checkpoints.find_whole_step(tmp_path) == steps[1]
    assert "12 has no manifest: written by an older version, not verified" in caplog.text
    metadata = json.dumps({"custom_metadata": checkpoints.MARK})
    (steps[1] / manifest.STEP_METADATA).write_text(metadata)
    assert "MANIFEST.json: no such file" in checkpoints.find_damage(steps[1])


def test_the_vocabulary_is_read_from_a_step_where_it_is_whole(steps, tmp_path):
    path = steps[1] / "tokenizer" / "metadata"
    path.write_text(path.read_text().replace("clip", "clap"))
    assert checkpoints.last_vocabulary(tmp_path) == CLIP
    (steps[0] / "tokenizer" / "metadata").unlink()
    with pytest.raises(ValueError, match="no whole step found"):
        checkpoints.last_vocabulary(tmp_path)


def test_a_damaged_step_of_an_older_version_is_one_sentence(tmp_path):
    state = toy.on_mesh(toy.make_mesh(1, 1), toy.init_state())
    trainer = Checkpointer(tmp_path / "checkpoints", settings(), {}, CLIP)
    trainer.save(3, state, POSITION, {"loss": 1.5})
    trainer.close()
    step = checkpoints.find_step(tmp_path)
    (step / manifest.MANIFEST).unlink()
    metadata = json.loads((step / manifest.STEP_METADATA).read_text())
    (step / manifest.STEP_METADATA).write_text(json.dumps(metadata | {"custom_metadata": {}}))
    for path in (step / "model").rglob("*"):
        if path.is_file() and not path.name.startswith("_"):
            path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(
        ValueError, match=r"checkpoints/3: can't be read \(.*restore a copy"
    ) as error:
        checkpoints.read_model(step)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"checkpoints/3: can't be read \(.*restore a copy"):
        toy.last_state(tmp_path, toy.abstract(toy.make_mesh(1, 1), toy.init_state()))
