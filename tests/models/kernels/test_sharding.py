"""Kernels on the devices of a mesh, and in micro-batches on each of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from groupvit_jax import parallel
from groupvit_jax.models.kernels import stacks
from groupvit_jax.train.grad_cache import in_micro_batches
from tests.devices import first_devices
from tests.models.kernels.test_fused_blocks import (
    MESHES,
    block_of,
    error,
    inputs,
    plain,
    scales_of,
    worst,
)

ROWS, TOKENS = 32, 13


@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_have_the_gradients_of_the_plain_batch(monkeypatch, num_devices, parts):
    monkeypatch.setitem(stacks.VMEM_BYTES, "cpu", 2**20)
    monkeypatch.setattr(stacks, "MOST_ROWS", 2)
    mesh = parallel.make_mesh(MESHES[num_devices], first_devices(num_devices))
    stack_fn = stacks.stack_fn(mesh, within_shard_map=True)
    params, x, gradient = inputs(ROWS, TOKENS)
    rows = {"x": jnp.asarray(x), "scales": jnp.moveaxis(scales_of(ROWS), -1, 0)}
    calls = []

    def encode(params, keys, rows):
        y = stack_fn(block_of(), params, rows["x"], None, jnp.moveaxis(rows["scales"], 0, -1))
        calls.append(y)
        return y

    @jax.jit
    def in_parts(params, x):
        features = in_micro_batches(encode, ROWS // parts, mesh, with_kernels=True)
        y, pullback = jax.vjp(lambda p, x: features(p, {}, rows | {"x": x}), params, x)
        return y, pullback(jnp.asarray(gradient))

    @jax.jit
    def whole(params, x):
        scales = scales_of(ROWS)
        y, pullback = jax.vjp(lambda p, x: plain(block_of(), p, x, None, scales), params, x)
        return y, pullback(jnp.asarray(gradient))

    found = in_parts(params, rows["x"])
    assert calls[0].shape[0] == ROWS // parts // num_devices
    assert worst(error(found, whole(params, rows["x"]))) < 1e-5
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
