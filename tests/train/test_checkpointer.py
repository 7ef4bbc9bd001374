import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from groupvit_jax.train.checkpointer import Checkpointer, CheckpointSettings
from tests.train import toy

POSITION = {"step": 3, "examples_seen": 24, "seed": 0, "batch_size": 8, "num_examples": 100}


def settings(**changes):
    return CheckpointSettings(**{"keep_last": 2} | changes)


def save(directory, state, step=3, **changes):
    checkpointer = Checkpointer(directory, settings(**changes), {"model": {"width": 8}})
    checkpointer.save(step, state, POSITION, {"loss": 1.5})
    checkpointer.close()


def test_restores_into_another_initialisation_bit_for_bit(tmp_path):
    mesh = toy.make_mesh(4, 2)
    state = toy.on_mesh(mesh, toy.init_state(seed=1))
    save(tmp_path, state)
    restored, position = Checkpointer(tmp_path, settings()).restore_latest(
        toy.abstract(mesh, toy.init_state(seed=2))
    )
    toy.assert_same(restored, state)
    assert position == POSITION


@pytest.mark.parametrize("sizes", [(1, 1), (2, 4)])
def test_restores_onto_another_mesh(tmp_path, sizes):
    state = toy.on_mesh(toy.make_mesh(4, 2), toy.init_state(seed=1))
    save(tmp_path, state)
    target = toy.abstract(toy.make_mesh(*sizes), toy.init_state())
    restored, _ = Checkpointer(tmp_path, settings()).restore_latest(target)
    toy.assert_same(restored, state)
    wanted = jax.tree.map(lambda leaf: leaf.sharding, target)
    assert jax.tree.map(lambda leaf: leaf.sharding, restored) == wanted


def test_state_may_be_donated_while_it_is_written(tmp_path):
    mesh = toy.make_mesh(4, 2)
    state = toy.on_mesh(mesh, toy.init_state(width=1 << 16))
    wanted, target = jax.tree.map(np.array, state.params), toy.abstract(mesh, state)
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 7.0, s), donate_argnums=0)
    checkpointer = Checkpointer(tmp_path, settings())
    checkpointer.save(1, state, POSITION, {})
    jax.block_until_ready(overwrite(state.params))
    checkpointer.wait()
    restored, _ = checkpointer.restore_latest(target)
    toy.assert_same(jax.device_get(restored.params), wanted)


def test_no_checkpoint_gives_none(tmp_path):
    target = toy.abstract(toy.make_mesh(1, 1), toy.init_state())
    assert Checkpointer(tmp_path, settings()).restore_latest(target) is None


def test_another_architecture_names_the_first_parameter_and_both_shapes(tmp_path):
    mesh = toy.make_mesh(1, 1)
    save(tmp_path, toy.on_mesh(mesh, toy.init_state(width=8)))
    target = toy.abstract(mesh, toy.init_state(width=6))
    message = r"params/tower/bias is float32\[8\] in the checkpoint, expected float32\[6\]"
    with pytest.raises(ValueError, match=message) as error:
        Checkpointer(tmp_path, settings()).restore_latest(target)
    assert "\n" not in str(error.value)


def test_another_optimizer_is_one_clear_error(tmp_path):
    mesh = toy.make_mesh(1, 1)
    state = toy.on_mesh(mesh, toy.init_state())
    save(tmp_path, state.replace(opt_state={"momentum": state.params}))
    with pytest.raises(ValueError, match=r"training: opt_state/.* is absent in the checkpoint"):
        Checkpointer(tmp_path, settings()).restore_latest(toy.abstract(mesh, state))


def test_keeps_the_last_and_the_best(tmp_path):
    state = toy.on_mesh(toy.make_mesh(1, 1), toy.init_state())
    checkpointer = Checkpointer(tmp_path, settings(keep_last=2, best_metric="recall"))
    values = {1: {"recall": 0.1}, 2: {"recall": 0.9}, 3: {}, 4: {"recall": float("nan")}, 5: {}}
    for step, metrics in values.items():
        checkpointer.save(step, state, POSITION, metrics)
    checkpointer.wait()
    assert checkpointer.all_steps() == [2, 4, 5]
    assert checkpointer.best_step() == 2
    checkpointer.close()
    reopened = Checkpointer(tmp_path, settings(keep_last=2, best_metric="recall"))
    assert (reopened.best_step(), reopened.latest_step()) == (2, 5)


def test_lowest_is_best_on_request(tmp_path):
    state = toy.on_mesh(toy.make_mesh(1, 1), toy.init_state())
    checkpointer = Checkpointer(tmp_path, settings(keep_last=1, best_metric="e", best_mode="min"))
    for step, value in enumerate((0.5, 0.2, 0.7)):
        checkpointer.save(step, state, POSITION, {"e": value})
    checkpointer.wait()
    assert checkpointer.all_steps() == [1, 2]


def test_saving_a_step_twice_keeps_the_first(tmp_path):
    mesh = toy.make_mesh(1, 1)
    checkpointer = Checkpointer(tmp_path, settings())
    for seed in (1, 2):
        state = toy.on_mesh(mesh, toy.init_state(seed))
        checkpointer.save(1, state, POSITION, {})
    restored, _ = checkpointer.restore_latest(toy.abstract(mesh, state))
    assert restored.batch_stats["tower"]["mean"][0] == 1.0


SAVE_AND_BE_KILLED = """
import os, sys
from tests.train import toy
from groupvit_jax.train.checkpointer import Checkpointer, CheckpointSettings
state = toy.on_mesh(toy.make_mesh(1, 1), toy.init_state(width=1 << 21))
settings = CheckpointSettings(keep_last=9)
checkpointer = Checkpointer(sys.argv[1], settings)
checkpointer.save(1, state, {}, {})
checkpointer.wait()
checkpointer.save(2, state, {}, {})
print("saving", flush=True)
checkpointer.wait()
"""


def test_half_written_step_is_ignored_and_removed(tmp_path):
    command = [sys.executable, "-c", SAVE_AND_BE_KILLED, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "saving\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = {path.name for path in tmp_path.iterdir()} - {"1"}
    assert left not in (set(), {"2"}), "the kill came too late to test anything"
    checkpointer = Checkpointer(tmp_path, settings(keep_last=9))
    assert checkpointer.latest_step() == 1
    state = toy.on_mesh(toy.make_mesh(1, 1), toy.init_state())
    checkpointer.save(2, state, POSITION, {})
    checkpointer.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
