"""The fused blocks, in Pallas's interpreter, against the plain blocks that define them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from groupvit_jax import parallel
from groupvit_jax.models import activations
from groupvit_jax.models.kernels import stacks
from groupvit_jax.models.layers import TransformerBlock
from tests.devices import first_devices

DEPTH, HEADS, WIDTH = 2, 2, 32
MESHES = {1: {"data": 1, "fsdp": 1, "tensor": 1}, 8: {"data": 2, "fsdp": 4, "tensor": 1}}
# Packed rows: two texts and padding; a token sees those before it in its own text.
PACKED = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2])


@pytest.fixture(autouse=True)
def _kernels_on_this_cpu(monkeypatch):
    monkeypatch.setitem(stacks.VMEM_BYTES, "cpu", 2**20)
    # Two rows a program: the interpreter's programs grow with them.
    monkeypatch.setattr(stacks, "MOST_ROWS", 2)


def block_of(dtype=jnp.float32, activation=activations.gelu):
    return TransformerBlock(HEADS, activation=activation, dtype=dtype, parent=None)


@functools.cache
def inputs(rows, tokens):
    """Parameters far from their initial values, tokens, and the gradient of the output."""
    rng = np.random.default_rng(0)
    shape = (rows, tokens, WIDTH)
    shapes = jax.eval_shape(block_of().init, jax.random.key(0), jnp.zeros(shape))["params"]

    def draw(path, leaf):
        is_scale = jax.tree_util.keystr(path[-1:], simple=True) == "scale"
        return is_scale + rng.normal(size=leaf.shape, scale=0.2).astype(np.float32)

    params = [jax.tree_util.tree_map_with_path(draw, shapes) for _ in range(DEPTH)]
    x, gradient = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    return params, x, gradient


def mask_of(rows):
    """Each row's texts begin at another place."""
    own = np.stack([np.roll(PACKED, row) for row in range(rows)])
    causal = np.tri(len(PACKED), dtype=bool)
    return jnp.asarray((own[:, :, None] == own[:, None, :]) & causal)


def scales_of(rows):
    """Every combination of a kept and a dropped attention and MLP, block by block."""
    kept = np.random.default_rng(1).random((DEPTH, 2, rows)) < 0.6
    kept[:, :, :4] = [[0, 0, 1, 1], [0, 1, 0, 1]]
    return jnp.asarray(kept / 0.6, jnp.float32)


def plain(block, params, x, mask, scales):
    x = x.astype(block.dtype)
    for i, each in enumerate(params):
        x = block.apply({"params": each}, x, mask, None if scales is None else scales[i])
    return x


def fused(num_devices, block, params, x, mask, scales):
    mesh = parallel.make_mesh(MESHES[num_devices], first_devices(num_devices))
    y = stacks.stack_fn(mesh)(block, params, x.astype(block.dtype), mask, scales)
    assert y is not None
    return y


def with_gradients(function, block, rows, tokens, mask, scales):
    params, x, gradient = inputs(rows, tokens)

    @jax.jit
    def run(params, x):
        y, pullback = jax.vjp(lambda p, x: function(block, p, x, mask, scales), params, x)
        return y, pullback(jnp.asarray(gradient, y.dtype))

    return run(params, x)


def error(found, expected):
    """The largest difference of a tensor, over the largest of its numbers; by tensor."""
    wide = [jax.tree.map(lambda y: np.asarray(y, np.float32), tree) for tree in (found, expected)]
    return jax.tree.map(lambda a, b: np.abs(a - b).max() / np.abs(b).max(), *wide)


def worst(errors):
    return max(jax.tree.leaves(errors))


CASES = {
    "image": (activations.gelu, 16, False, False),
    "image, odd, dropped branches": (activations.gelu, 13, False, True),
    "few tokens": (activations.gelu, 3, False, True),
    "text": (activations.quick_gelu, len(PACKED), True, False),
    "text, dropped branches": (activations.quick_gelu, len(PACKED), True, True),
}


@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_those_of_the_plain_blocks(case, num_devices):
    activation, tokens, masked, dropped = CASES[case]
    rows = 8
    mask, scales = mask_of(rows) if masked else None, scales_of(rows) if dropped else None
    arguments = (block_of(activation=activation), rows, tokens, mask, scales)
    expected = with_gradients(plain, *arguments)
    found = with_gradients(functools.partial(fused, num_devices), *arguments)
    assert worst(error(found, expected)) < 1e-5


def test_in_bfloat16_errors_are_no_larger_than_those_of_the_plain_blocks():
    """Both are compared with float32.

    The plain blocks round every intermediate value to bfloat16, the kernels only the operands of
    products; so tensor by tensor the kernels may be off by the plain blocks' own error, with half
    as much again for the luck of single numbers.
    """
    mask, scales = mask_of(8), scales_of(8)
    arguments = (8, len(PACKED), mask, scales)
    exact = with_gradients(plain, block_of(), *arguments)
    rounded = error(with_gradients(plain, block_of(jnp.bfloat16), *arguments), exact)
    kernel = with_gradients(functools.partial(fused, 1), block_of(jnp.bfloat16), *arguments)
    assert kernel[0].dtype == jnp.bfloat16
    kernel = error(kernel, exact)
    assert worst(rounded) > 1e-3  # the comparison is of rounding, not of zeros
    jax.tree.map(lambda k, r: np.testing.assert_array_less(k, 1.5 * r + 2**-9), kernel, rounded)


def test_kernels_are_for_blocks_they_can_run(monkeypatch):
    monkeypatch.setattr(stacks, "MOST_ROWS", 16)
    choose = functools.partial(stacks.choose_stack, num_rows=64)
    published = TransformerBlock(6, dtype=jnp.bfloat16, parent=None)
    v5e = stacks.VMEM_BYTES["TPU v5 lite"]
    stack = choose(published, (64, 260, 384), vmem_bytes=v5e)
    assert (stack.block.row_length, stack.rows) == (264, 2)
    assert choose(published, (64, 8, 384), vmem_bytes=v5e).rows == 16
    assert choose(published, (64, 260, 384), vmem_bytes=2**24) is None  # a v4's
    assert choose(published, (64, 848, 384), vmem_bytes=v5e) is None  # patches of 8 pixels
    assert choose(published.clone(activation=jax.nn.relu), (64, 260, 384), vmem_bytes=v5e) is None
    wide = TransformerBlock(12, dtype=jnp.bfloat16, parent=None)
    assert choose(wide, (64, 260, 768), vmem_bytes=v5e) is not None


def test_kernels_are_for_whole_matrices_on_known_chips(monkeypatch):
    mesh = parallel.make_mesh({"data": 4, "fsdp": 1, "tensor": 2}, first_devices(8))
    assert stacks.stack_fn(mesh) is None
    monkeypatch.delitem(stacks.VMEM_BYTES, "cpu")
    assert stacks.stack_fn(parallel.make_mesh(MESHES[1], first_devices(1))) is None
