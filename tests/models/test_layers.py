import jax
import jax.numpy as jnp
import numpy as np
import pytest

from groupvit_jax.models import activations, layers
from tests.bounds import UNIT_ROUNDOFF


def test_quick_gelu_and_gelu_at_known_points():
    x = jnp.array([-1.0, 0.0, 2.0])
    np.testing.assert_allclose(activations.quick_gelu(x), x / (1 + np.exp(-1.702 * x)), rtol=1e-6)
    np.testing.assert_allclose(activations.gelu(x), [-0.158655, 0.0, 1.954500], rtol=1e-5)


def test_attention_ignores_what_its_mask_hides():
    attention = layers.SelfAttention(num_heads=2)
    x = jax.random.normal(jax.random.key(0), (1, 5, 8))
    mask = jnp.tri(5, dtype=bool)[None]
    variables = attention.init(jax.random.key(1), x)
    before = attention.apply(variables, x, mask)
    after = attention.apply(variables, x.at[:, 3:].add(1.0), mask)
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert not np.allclose(before[:, 3:], after[:, 3:])


@pytest.mark.parametrize("masked", [False, True])
def test_attention_may_normalize_before_or_after_the_product(masked):
    query, key, value = jax.random.normal(jax.random.key(0), (3, 2, 3, 5, 8))
    mask = jnp.tri(5, dtype=bool)[None, None] if masked else None

    def run(**settings):
        def loss(*inputs):
            return jnp.sin(layers.attend(*inputs, mask, **settings)).sum()

        return jax.value_and_grad(loss, (0, 1, 2))(query, key, value)

    for found, expected in zip(
        jax.tree.leaves(run(normalize_first=True)), jax.tree.leaves(run()), strict=True
    ):
        # Sums of 5 or 8 products, a few of them one after another.
        bound = 64 * UNIT_ROUNDOFF * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


def test_linear_has_the_gradients_of_a_matrix_product():
    x, kernel = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(2, 5, 3), (3, 4)]))

    def gradients(product):
        return jax.jit(jax.grad(lambda x, k: jnp.sin(product(x, k)).sum(), (0, 1)))(x, kernel)

    for found, expected in zip(gradients(layers.linear), gradients(jnp.matmul), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_stochastic_depth_drops_each_branch_at_its_rate_and_keeps_the_mean():
    keys = layers.example_keys(jax.random.key(0), jnp.arange(20_000))
    scales = layers.draw_branch_scales(keys, [0.0, 0.25])
    np.testing.assert_array_equal(scales[0], 1)
    assert set(np.unique(scales[1])) == {0.0, np.float32(1 / 0.75)}
    np.testing.assert_allclose((scales[1] == 0).mean(-1), 0.25, atol=0.01)
    assert (scales[1, 0] != scales[1, 1]).any()


def test_a_dropped_branch_leaves_its_image_alone():
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    block = layers.TransformerBlock(num_heads=2)
    variables = jax.jit(block.init)(jax.random.key(1), x)

    @jax.jit
    def run(scales):
        return block.apply(variables, x, None, scales)

    full = jax.jit(block.apply)(variables, x)
    found = run(jnp.array([[0.0, 1.0], [0.0, 1.0]]))
    np.testing.assert_array_equal(found[0], x[0])
    np.testing.assert_allclose(found[1], full[1], rtol=1e-6)
    assert not np.allclose(run(jnp.array([[2.0, 1.0], [1.0, 1.0]]))[0], full[0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gelu_has_the_slope_of_the_exact_function(dtype):
    x = jnp.linspace(-6, 6, 101, dtype=dtype)
    found = jax.jit(jax.grad(lambda x: activations.gelu(x).astype(jnp.float32).sum()))(x)
    wide = x.astype(jnp.float32)
    expected = jax.jit(jax.grad(lambda x: jax.nn.gelu(x, approximate=False).sum()))(wide)
    assert found.dtype == dtype
    # The result of bfloat16 is rounded once, to 2^-8 of itself.
    rtol = 0 if dtype == jnp.float32 else 2.0**-8
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=rtol, atol=1e-6)


def test_batch_norm_follows_pytorch_running_statistics():
    x = jax.random.normal(jax.random.key(0), (6, 3)) * 2 + 1
    norm = layers.BatchNorm()
    variables = norm.init(jax.random.key(1), x, train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], 0)  # init leaves them alone
    y, updated = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    wide = np.asarray(x, np.float64)
    expected = (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-5)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    stats = updated["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * wide.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * wide.var(0, ddof=1), rtol=1e-5)
    y = norm.apply({**variables, **updated}, x, train=False)
    expected = (wide - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_batch_norm_statistics_are_global_on_8_devices():
    x = jax.random.normal(jax.random.key(0), (16, 4))
    norm = layers.BatchNorm()
    variables = norm.init(jax.random.key(1), x, train=True)

    @jax.jit
    def apply(x):
        return norm.apply(variables, x, train=True, mutable=["batch_stats"])

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    alone, sharded = apply(x), apply(jax.device_put(x, rows))
    # Mean and variance are sums of 16 rows, each off by up to 16 roundings; y is their quotient.
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(alone))
    atol = (16 + 16 + 8) * UNIT_ROUNDOFF * largest
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), alone, sharded)
