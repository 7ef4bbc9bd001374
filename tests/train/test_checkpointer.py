import collections
import logging
import random
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from groupvit_jax.runs import checkpoints
from groupvit_jax.runs.files import read_json
from groupvit_jax.runs.manifest import MANIFEST, STEP_METADATA, find_damage
from groupvit_jax.train import checkpointer
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


@pytest.mark.parametrize(("width", "parts"), [(1 << 17, 8), (1 << 14, 1)])
def test_devices_share_the_writing_of_large_arrays_alone(tmp_path, width, parts):
    """Each cut is an operation of its own on a device, for which training waits."""
    save(tmp_path, toy.on_mesh(toy.make_mesh(8, 1), toy.init_state(width=width)))
    tree = Checkpointer(tmp_path, settings())._manager.item_metadata(3)[checkpoints.MODEL].tree
    written = {leaf.shape: leaf.storage.chunk_shape for leaf in jax.tree.leaves(tree)}
    assert written[width,] == (width // parts,)


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


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A folder with the steps 1 and 2, whose states are `toy.init_state(1)` and `(2)`."""
    directory = tmp_path_factory.mktemp("two") / "checkpoints"
    checkpointer = Checkpointer(directory, settings(), {"model": {"width": 8}})
    for step in (1, 2):
        state = toy.on_mesh(toy.make_mesh(1, 1), toy.init_state(step))
        checkpointer.save(step, state, POSITION | {"step": step}, {"loss": 1.5})
    checkpointer.close()
    return directory


def test_every_step_has_a_manifest_and_deleted_ones_leave_nothing(tmp_path):
    state = toy.on_mesh(toy.make_mesh(1, 1), toy.init_state())
    checkpointer = Checkpointer(tmp_path, settings(keep_last=1))
    for step in (1, 2, 3):
        checkpointer.save(step, state, POSITION, {})
    checkpointer.close()
    assert find_damage(tmp_path / "3") is None
    Checkpointer(tmp_path, settings(keep_last=1)).close()
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_a_manifest_waits_for_metadata_that_orbax_writes_on_a_thread(tmp_path):
    path = tmp_path / STEP_METADATA
    path.write_text('{"item_handlers": {}}')
    states = iter(['{"item_han', '{"item_handlers": {"model": "handler"}}'])

    def write_late(seconds):
        assert seconds > 0
        path.write_text(next(states))

    checkpointer.wait_for_metadata(path, sleep=write_late)
    assert read_json(path)["item_handlers"]


def test_metadata_that_never_come_end_the_save(tmp_path):
    now = iter(range(0, 1000, 20))
    with pytest.raises(TimeoutError, match=STEP_METADATA):
        checkpointer.wait_for_metadata(
            tmp_path / STEP_METADATA, sleep=lambda _: None, clock=lambda: next(now)
        )


def test_a_damaged_step_is_set_aside_and_the_one_before_is_restored(two_steps, tmp_path, caplog):
    directory = shutil.copytree(two_steps, tmp_path / "checkpoints")
    damage(next((directory / "2/model/d").iterdir()), random.Random(0))
    checkpointer = Checkpointer(directory, settings())
    restored, position = checkpointer.restore_latest(target())
    toy.assert_same(restored, toy.init_state(1))
    assert position["step"] == 1
    checkpointer.save(2, toy.on_mesh(toy.make_mesh(1, 1), toy.init_state(2)), POSITION, {})
    caplog.clear()
    checkpointer.close()  # says it again
    assert "damaged checkpoint: " in caplog.text
    assert "set aside as 2.damaged" in caplog.text
    assert {path.name for path in directory.iterdir()} == {"1", "2", "2.damaged"}
    assert find_damage(directory / "2") is None


def target():
    return toy.abstract(toy.make_mesh(1, 1), toy.init_state())


def damage(path, rng):
    """Flip a bit of a file or truncate it; return which."""
    content = bytearray(path.read_bytes())
    if rng.random() < 0.2 or not content:
        path.write_bytes(content[: rng.randrange(len(content))] if content else b"x")
        return "truncated"
    bit = rng.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return "flipped"


def restored_after_damage(two_steps, directory, rng):
    """Damage a file of a copy of two steps, chosen by size; return how a resume then ends."""
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(two_steps, directory)
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    # Half of them by size, where bits flip, half of them equally, where small files matter.
    weights = [path.stat().st_size + 1 for path in files] if rng.random() < 0.5 else None
    kind = damage(rng.choices(files, weights)[0], rng)
    checkpointer = Checkpointer(directory, settings())
    restored, position = checkpointer.restore_latest(target())
    checkpointer.close()
    step = position["step"]
    toy.assert_same(restored, toy.init_state(step))
    model = checkpoints.read_model(checkpoints.find_whole_step(directory))
    toy.assert_same(model["params"], toy.init_state(step).params)
    assert step == 2 or (directory / "2.damaged").exists()
    return kind, step


@pytest.mark.parametrize("count", [20, pytest.param(300, marks=pytest.mark.slow)])
def test_random_damages_cost_at_most_a_step(two_steps, tmp_path, count):
    logging.disable(logging.WARNING)
    rng, ends = random.Random(count), collections.Counter()
    try:
        for _ in range(count):
            ends[restored_after_damage(two_steps, tmp_path / "c", rng)] += 1
    finally:
        logging.disable(logging.NOTSET)
    print(dict(ends))
    assert {step for _, step in ends} == {1, 2}


def test_without_any_whole_step_nothing_is_renamed(two_steps, tmp_path):
    directory = shutil.copytree(two_steps, tmp_path / "checkpoints")
    for step in "1", "2":
        (directory / step / MANIFEST).unlink()
    with pytest.raises(ValueError, match=r"no whole step found \(.*2/MANIFEST.json: no such file"):
        Checkpointer(directory, settings())
    assert {path.name for path in directory.iterdir()} == {"1", "2"}


SAVE_AND_BE_KILLED = """
import os, sys
from tests.train import toy
from groupvit_jax.runs import checkpoints
from groupvit_jax.runs.manifest import MANIFEST, find_damage
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
