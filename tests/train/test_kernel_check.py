"""The start-up check of the fused blocks, with kernels in Pallas's interpreter."""

import dataclasses
import logging
import math

import jax
import pytest

from groupvit_jax import parallel
from groupvit_jax.models import activations
from groupvit_jax.models.kernels import block_math, stacks
from groupvit_jax.runs.configuration import changed
from groupvit_jax.train import kernel_check
from groupvit_jax.train import state as state_lib
from groupvit_jax.train.kernel_check import Errors
from groupvit_jax.train.tasks import task_of
from tests.devices import first_devices
from tests.train.test_step import MESHES, host_batch, random_variables, tiny_config


@pytest.fixture
def mesh(monkeypatch):
    monkeypatch.setitem(stacks.VMEM_BYTES, "cpu", 2**20)
    monkeypatch.setattr(stacks, "MOST_ROWS", 2)
    return parallel.make_mesh(MESHES["one"], first_devices(1))


def test_an_error_is_rounding_by_the_plain_code_s():
    assert Errors(0.01, 0.19, 0.001, 0.1).are_of_rounding  # a loss that is near by chance
    assert not Errors(0.01, 0.21, 0.001, 0.1).are_of_rounding
    assert not Errors(0.3, 0.1, 0.001, 0.1).are_of_rounding
    assert Errors(0.001, 0.001, 0.0, 0.0).are_of_rounding
    assert not Errors(0.001, 0.003, 0.0, 0.0).are_of_rounding
    assert not Errors(0.01, math.nan, 0.01, 0.1).are_of_rounding
    assert not Errors(math.nan, 0.1, 0.01, 0.1).are_of_rounding


def kernels_chosen(monkeypatch, mesh, config, errors):
    monkeypatch.setattr(kernel_check, "compare", lambda *_: errors)
    # A loss that tells which blocks it was made for.
    task = dataclasses.replace(
        task_of(config), make_loss=lambda model, config, mesh: lambda: config.model.kernels
    )
    state = state_lib.TrainState(0, {}, {}, None, jax.random.key(0))
    return kernel_check.checked_loss(task, None, config, mesh, state, host_batch(config, 0))()


def test_kernels_that_disagree_are_left_out_with_a_warning(monkeypatch, mesh, caplog):
    config = tiny_config()
    with caplog.at_level(logging.WARNING):
        right = Errors(1e-3, 1e-2, 1e-3, 1e-2)
        assert kernels_chosen(monkeypatch, mesh, config, right) == "auto"
        assert not caplog.records
        wrong = Errors(1e-3, 0.7, 1e-4, 1e-2)
        assert kernels_chosen(monkeypatch, mesh, config, wrong) == "plain"
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
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_term_is_larger_than_rounding(monkeypatch, mesh, dtype):
    config = tiny_config()
    config.model.dtype = dtype
    task = task_of(config)
    variables = random_variables(task.build_model(config), task.batch_shapes(config))
    state = state_lib.TrainState(
        0, variables["params"], variables["batch_stats"], None, jax.random.key(0)
    )
    batch = parallel.to_global_batch(mesh, host_batch(config, 0))

    def make_loss(changes):
        other = changed(config, changes)
        return task.make_loss(task.build_model(other), other, mesh)

    right = kernel_check.compare(make_loss, mesh, state, batch)
    assert right.are_of_rounding, right
    if dtype == "float32":
        assert right.gradients < 1e-4

    def gelu_with_a_wrong_slope(x):
        value, slope = block_math.gelu(x)
        # At this model's width bfloat16 rounds gradients by 12 %: it hides a missing term.
        return value, 0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5) if dtype == "float32" else -slope

    monkeypatch.setitem(block_math.ACTIVATIONS, activations.gelu, gelu_with_a_wrong_slope)
    wrong = kernel_check.compare(make_loss, mesh, state, batch)
    assert not wrong.are_of_rounding, wrong
