"""The start-up check of the fused blocks, with kernels in Pallas's interpreter."""

import dataclasses
import logging
import math

import jax
import pytest

from groupvit_jax import parallel
from groupvit_jax.models import layers
from groupvit_jax.models.kernels import block_math, stacks
from groupvit_jax.train import kernel_check
from groupvit_jax.train import state as state_lib
from groupvit_jax.train.kernel_check import Difference
from groupvit_jax.train.tasks import task_of
from tests.devices import first_devices
from tests.train.test_step import MESHES, host_batch, random_variables, tiny_config


@pytest.fixture
def mesh(monkeypatch):
    monkeypatch.setitem(stacks.VMEM_BYTES, "cpu", 2**20)
    monkeypatch.setattr(stacks, "MOST_ROWS", 2)
    return parallel.make_mesh(MESHES["one"], first_devices(1))


def test_what_is_not_a_number_is_not_small():
    assert Difference(0.01, 0.05).is_small
    assert not Difference(0.01, math.nan).is_small
    assert not Difference(math.nan, 0.01).is_small
    assert not Difference(0.01, 0.5).is_small


def kernels_chosen(monkeypatch, mesh, config, difference):
    monkeypatch.setattr(kernel_check, "compare", lambda *_: difference)
    # A loss that tells which blocks it was made for.
    task = dataclasses.replace(
        task_of(config), make_loss=lambda model, config, mesh: lambda: config.model.kernels
    )
    state = state_lib.TrainState(0, {}, {}, None, jax.random.key(0))
    return kernel_check.checked_loss(task, None, config, mesh, state, host_batch(config, 0))()


def test_kernels_that_disagree_are_left_out_with_a_warning(monkeypatch, mesh, caplog):
    config = tiny_config()
    with caplog.at_level(logging.WARNING):
        assert kernels_chosen(monkeypatch, mesh, config, Difference(1e-3, 1e-2)) == "auto"
        assert not caplog.records
        assert kernels_chosen(monkeypatch, mesh, config, Difference(1e-3, 0.7)) == "plain"
    assert "0.001 of the loss and 0.7 of the gradients" in caplog.text
    assert config.model.kernels == "auto"  # the run's own configuration is as it was


def test_without_kernels_nothing_is_compared(monkeypatch, mesh):
    config = tiny_config()
    config.model.kernels = "plain"
    assert kernels_chosen(monkeypatch, mesh, config, None) == "plain"
    config.model.kernels = "auto"
    monkeypatch.delitem(stacks.VMEM_BYTES, "cpu")
    assert kernels_chosen(monkeypatch, mesh, config, None) == "auto"


@pytest.mark.slow
def test_a_wrong_term_is_larger_than_rounding(monkeypatch, mesh):
    # In float32: at this model's width of 32, bfloat16 alone moves gradients by 7 to 19 %.
    config = tiny_config()
    task = task_of(config)
    variables = random_variables(task.build_model(config), task.batch_shapes(config))
    state = state_lib.TrainState(
        0, variables["params"], variables["batch_stats"], None, jax.random.key(0)
    )
    batch = parallel.to_global_batch(mesh, host_batch(config, 0))
    right = kernel_check.compare(task, config, mesh, state, batch)
    assert right.is_small
    assert right.gradients < 1e-4

    def without_a_term(x):
        value, _ = block_math.gelu(x)
        return value, 0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5)

    monkeypatch.setitem(block_math.ACTIVATIONS, layers.gelu, without_a_term)
    assert not kernel_check.compare(task, config, mesh, state, batch).is_small
