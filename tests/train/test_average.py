"""The moving average of a run's parameters: its values, its shards, and who takes it."""

import jax
import numpy as np
import pytest

from groupvit_jax.models.two_tower import build_model
from groupvit_jax.runs import checkpoints
from groupvit_jax.train import hooks
from groupvit_jax.train.checkpointer import Checkpointer, CheckpointSettings
from tests.train import toy
from tests.train.test_step import MESHES, Run, host_batch, tiny_config

DECAY = 0.7
STEPS = 3


@pytest.fixture(scope="module")
def averaged():
    """A run after some steps on eight devices, and the variables after each."""
    config = tiny_config()
    config.optimizer.ema_decay = DECAY
    run, history = Run(config, MESHES["fsdp"], build_model(config.model)), []
    for step in range(STEPS):
        run(host_batch(config, step))
        state = run.state
        history.append(jax.device_get({"params": state.params, "batch_stats": state.batch_stats}))
    return run, history


def test_the_average_is_that_of_the_steps(averaged):
    run, history = averaged
    weights = DECAY ** np.arange(STEPS - 1.0, -1, -1)
    expected = jax.tree.map(
        lambda *x: np.average(np.stack(x).astype(np.float64), axis=0, weights=weights), *history
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        jax.device_get(run.state.average),
        expected,
    )


def test_it_lies_in_the_shards_of_the_parameters(averaged):
    state = averaged[0].state
    same = jax.tree.map(
        lambda a, p: a.sharding == p.sharding, state.average["params"], state.params
    )
    assert jax.tree.all(same)
    arrays = jax.tree.leaves(state.average["params"])
    assert any(x.addressable_shards[0].data.shape != x.shape for x in arrays)


def state_with_average(seed):
    state, other = toy.init_state(seed), toy.init_state(seed + 10)
    return state.replace(average={"params": other.params, "batch_stats": other.batch_stats})


def test_a_checkpoint_keeps_both_and_has_the_average_as_its_model(tmp_path):
    mesh = toy.make_mesh(4, 2)
    state = toy.on_mesh(mesh, state_with_average(1))
    checkpointer = Checkpointer(tmp_path, CheckpointSettings())
    checkpointer.save(1, state, {"step": 1}, {})
    target = toy.abstract(mesh, state_with_average(2))
    toy.assert_same(checkpointer.restore_latest(target)[0], state)
    checkpointer.close()
    found = checkpoints.read_model(tmp_path / "1")
    toy.assert_same(found, jax.device_get(state.average))


def test_it_is_evaluated_and_has_to_be_finite():
    state, seen = state_with_average(1), []

    class Recall:
        name = "recall"

        def __call__(self, variables):
            seen.append(variables)
            return {"r1": 0.5}

    context = hooks.StepContext(1, 1, state)
    hooks.Evaluate([(Recall(), 1)]).after_step(context)
    assert seen == [state.average]
    assert context.record == {"recall/r1": 0.5}
    bad = state.replace(average=jax.tree.map(lambda x: x / 0, state.average))
    with pytest.raises(hooks.NonFiniteError, match=r"step 1: batch_stats/.* is not finite"):
        hooks.check_finite(bad, 1)
