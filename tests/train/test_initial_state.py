import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from groupvit_jax.train.checkpointer import Checkpointer, CheckpointSettings
from groupvit_jax.train.data_position import continue_from
from groupvit_jax.train.initial_state import initial_state
from tests.train import toy

MESH = (4, 2)
POSITION = {"step": 3, "examples_seen": 24, "batch_size": 8, "seed": 0, "num_examples": 100}


class Report:
    def lines(self):
        return ["1 loaded", "unused params/other"]


def ones_from(path, params, batch_stats, model_config):
    assert (path, model_config.to_dict()) == ("somewhere", {"width": 8})
    return jax.tree.map(lambda x: x * 0 + 1, params), batch_stats, Report()


READERS = {"init_from": ones_from}


def start_from(workdir, init_from="", readers=READERS):
    mesh = toy.make_mesh(*MESH)
    settings = CheckpointSettings(keep_last=2)
    config = ConfigDict({"init_from": init_from, "seed": 5, "model": {"width": 8}})
    return initial_state(
        config,
        Checkpointer(workdir, settings),
        toy.abstract(mesh, toy.init_state()),
        lambda: toy.on_mesh(mesh, toy.init_state(seed=5)),
        readers,
    )


def save(workdir, state):
    settings = CheckpointSettings(keep_last=2)
    checkpointer = Checkpointer(workdir, settings)
    checkpointer.save(3, state, POSITION, {})
    checkpointer.close()


def test_1_a_checkpoint_in_the_workdir_wins_over_init_from(tmp_path):
    saved = toy.on_mesh(toy.make_mesh(*MESH), toy.init_state(seed=1))
    save(tmp_path, saved)
    state, position = start_from(tmp_path, init_from="somewhere")
    toy.assert_same(state, saved)
    assert position == POSITION


def test_2_init_from_gives_parameters_and_nothing_else(tmp_path, caplog):
    with caplog.at_level("INFO"):
        state, position = start_from(tmp_path, init_from="somewhere")
    assert position is None
    assert int(state.step) == 0
    assert all(np.all(x == 1) for x in jax.tree.leaves(state.params))
    fresh = toy.init_state(seed=5)
    toy.assert_same(jax.device_get(state.opt_state), jax.device_get(fresh.opt_state))
    assert "somewhere: unused params/other" in caplog.text


def two_from(path, params, batch_stats, model_config):
    return {**params, "logit_scale": params["logit_scale"] * 0 + 2}, batch_stats, Report()


@pytest.mark.parametrize("init_from", ["", "somewhere"])
def test_2_the_text_tower_is_taken_after_all_else(tmp_path, init_from):
    mesh = toy.make_mesh(*MESH)
    settings = CheckpointSettings(keep_last=2)
    config = ConfigDict(
        {"init_from": init_from, "text_init_from": "bert", "seed": 5, "model": {"width": 8}}
    )
    checkpointer, fresh = Checkpointer(tmp_path, settings), toy.on_mesh(mesh, toy.init_state(5))
    abstract = toy.abstract(mesh, fresh)
    state, _ = initial_state(
        config, checkpointer, abstract, lambda: fresh, READERS | {"text_init_from": two_from}
    )
    assert state.params["logit_scale"] == 2
    is_one = np.all(np.asarray(state.params["tower"]["kernel"]) == 1)
    assert is_one == bool(init_from)
    with pytest.raises(ValueError, match=r"config.text_init_from='bert': nothing here can read"):
        initial_state(config, checkpointer, abstract, lambda: fresh, READERS)


def test_2_without_a_reader_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"config.init_from='somewhere'"):
        start_from(tmp_path, init_from="somewhere", readers={})


def test_3_a_fresh_state_otherwise(tmp_path):
    state, position = start_from(tmp_path)
    assert position is None
    toy.assert_same(state, toy.on_mesh(toy.make_mesh(*MESH), toy.init_state(seed=5)))


def go_on(**changes):
    return continue_from(POSITION, **({"batch_size": 8, "seed": 0, "num_examples": 100} | changes))


def test_the_position_goes_on_where_it_was(caplog):
    position = go_on()
    assert (position.first_step, position.first_batch) == (3, 3)
    assert position.after(5) == {**POSITION, "step": 5, "examples_seen": 40}
    assert caplog.text == ""


def test_another_batch_size_goes_on_at_the_same_example(caplog):
    position = go_on(batch_size=4)
    assert (position.first_step, position.first_batch) == (3, 6)
    assert position.after(4)["examples_seen"] == 28
    assert go_on(batch_size=10).first_batch == 2
    assert "4 examples are seen twice" in caplog.text


@pytest.mark.parametrize("change", [{"seed": 1}, {"num_examples": 99}])
def test_other_data_are_reported(caplog, change):
    assert go_on(**change).first_batch == 3
    assert "their order doesn't continue" in caplog.text
