import jax
import jax.numpy as jnp
import numpy as np
import pytest

from groupvit_jax.models import layers


def test_quick_gelu_and_gelu_at_known_points():
    x = jnp.array([-1.0, 0.0, 2.0])
    np.testing.assert_allclose(layers.quick_gelu(x), x / (1 + np.exp(-1.702 * x)), rtol=1e-6)
    np.testing.assert_allclose(layers.gelu(x), [-0.158655, 0.0, 1.954500], rtol=1e-5)


def test_attention_ignores_what_its_mask_hides():
    attention = layers.SelfAttention(num_heads=2)
    x = jax.random.normal(jax.random.key(0), (1, 5, 8))
    mask = jnp.tri(5, dtype=bool)[None]
    variables = attention.init(jax.random.key(1), x)
    before = attention.apply(variables, x, mask)
    after = attention.apply(variables, x.at[:, 3:].add(1.0), mask)
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert not np.allclose(before[:, 3:], after[:, 3:])


def test_linear_has_the_gradients_of_a_matrix_product():
    x, kernel = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(2, 5, 3), (3, 4)]))

    def gradients(product):
        return jax.jit(jax.grad(lambda x, k: jnp.sin(product(x, k)).sum(), (0, 1)))(x, kernel)

    for found, expected in zip(gradients(layers.linear), gradients(jnp.matmul), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_drop_path_drops_whole_rows_at_its_rate_and_keeps_the_mean():
    x = jnp.ones((20_000, 2))
    drop = layers.DropPath(0.25)
    y = drop.apply({}, x, noise_ids=jnp.arange(20_000), rngs={"drop_path": jax.random.key(0)})
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    np.testing.assert_array_equal(y[:, 0], y[:, 1])
    assert np.mean(y == 0) == pytest.approx(0.25, abs=0.01)
    np.testing.assert_array_equal(drop.apply({}, x, noise_ids=None), x)


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
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), alone, sharded)
