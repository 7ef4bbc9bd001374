import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from groupvit_jax.models import build_model
from groupvit_jax.models.blocks import REMAT, Execution, run_blocks
from groupvit_jax.models.layers import TransformerBlock

DEPTH = 3
X = jax.random.normal(jax.random.key(0), (2, 5, 8))
MASK = jnp.tile(jnp.tri(5, dtype=bool), (2, 1, 1))
SCALES = jax.random.uniform(jax.random.key(1), (DEPTH, 2, 2))


class Stack(nn.Module):
    execution: Execution
    depth: int = DEPTH

    @nn.compact
    def __call__(self, x, mask=None, scales=None):
        block = TransformerBlock(num_heads=2, parent=None)
        return run_blocks(self, block, self.depth, x, mask, scales, execution=self.execution)


def loss_and_gradients(execution, params, scales):
    def loss(params, x):
        y = Stack(execution).apply({"params": params}, x, MASK, scales)
        return jnp.sin(y).sum()

    return jax.jit(jax.value_and_grad(loss, (0, 1)))(params, X)


@pytest.fixture(scope="module")
def params():
    return jax.jit(Stack(Execution(scan_layers=False)).init)(jax.random.key(2), X)["params"]


@pytest.mark.parametrize("remat", REMAT)
@pytest.mark.parametrize("scan_layers", [False, True])
def test_every_execution_gives_the_values_of_blocks_in_turn(params, scan_layers, remat):
    block = TransformerBlock(num_heads=2)

    @jax.jit
    @jax.value_and_grad
    def in_turn(params, x):
        for i in range(DEPTH):
            x = block.apply({"params": params[f"blocks_{i}"]}, x, MASK, SCALES[i])
        return jnp.sin(x).sum()

    expected, expected_gradients = in_turn(params, X)
    found, (gradients, _) = loss_and_gradients(Execution(scan_layers, remat), params, SCALES)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        gradients,
        expected_gradients,
    )


def test_parameters_are_the_same_tree_whatever_the_execution(params):
    assert set(params) == {"blocks_0", "blocks_1", "blocks_2"}
    scanned = jax.jit(Stack(Execution(scan_layers=True)).init)(jax.random.key(2), X)["params"]
    jax.tree.map(np.testing.assert_array_equal, scanned, params)


def test_a_scanned_program_does_not_grow_with_depth():
    def products(depth, scan_layers):
        stack = Stack(Execution(scan_layers), depth)
        variables = jax.eval_shape(stack.init, jax.random.key(2), X)
        return jax.jit(stack.apply).lower(variables, X).as_text().count("dot_general")

    assert products(6, True) == products(2, True)
    assert products(6, False) == 3 * products(2, False)


def test_rematerialised_blocks_keep_less():
    def kept(remat):
        stack = Stack(Execution(True, remat))
        variables = jax.eval_shape(stack.init, jax.random.key(2), X)
        _, pullback = jax.eval_shape(lambda v: jax.vjp(lambda v: stack.apply(v, X), v), variables)
        return sum(leaf.size for leaf in jax.tree.leaves(pullback))

    assert kept("blocks") < kept("dots") < kept("none")


def test_the_configuration_reaches_both_towers(config):
    config = config.copy_and_resolve_references()
    config.update(scan_layers=False, remat="dots")
    model = build_model(config)
    assert model.image_encoder.execution == Execution(False, "dots")
    assert model.text_encoder.execution == Execution(False, "dots")
    config.remat = "layers"
    with pytest.raises(ValueError, match=r"^config\.model\.remat: 'layers' found, expected 'none'"):
        build_model(config)
