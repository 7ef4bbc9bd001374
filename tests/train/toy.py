"""A model of two small arrays and its training step: enough for everything but the numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from groupvit_jax.train.state import TrainState

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))


def make_mesh(data, fsdp):
    devices = jax.devices()[: data * fsdp]
    types = (AxisType.Auto,) * 2
    return jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=types, devices=devices)


def init_state(seed=0, width=8):
    rng = np.random.default_rng(seed)
    kernel = jnp.asarray(rng.normal(size=(4, width)), jnp.float32)
    params = {"tower": {"kernel": kernel, "bias": jnp.zeros(width)}, "logit_scale": jnp.zeros(())}
    batch_stats = {"tower": {"mean": jnp.full(width, float(seed))}}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=OPTIMIZER.init(params),
        key=jax.random.key(seed),
    )


def state_shardings(mesh, state):
    def sharding(leaf):
        spec = PartitionSpec(None, "fsdp") if leaf.ndim == 2 else PartitionSpec()
        return NamedSharding(mesh, spec)

    return jax.tree.map(sharding, state)


def on_mesh(mesh, state):
    return jax.device_put(state, state_shardings(mesh, state))


def abstract(mesh, state):
    return jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
        jax.eval_shape(lambda: state),
        state_shardings(mesh, state),
    )


def make_train_step(mesh, state):
    def train_step(state, batch):
        def loss_fn(params):
            x = batch["x"] @ params["tower"]["kernel"] + params["tower"]["bias"]
            noise = jax.random.normal(jax.random.fold_in(state.key, state.step), x.shape)
            return jnp.mean((x + 0.01 * noise - 1.0) ** 2), x.mean(0)

        (loss, mean), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = OPTIMIZER.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new = TrainState(state.step + 1, params, {"tower": {"mean": mean}}, opt_state, state.key)
        return new, {"loss": loss, "gradient_norm": optax.tree.norm(gradients)}

    shardings = state_shardings(mesh, state)
    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None))


def batches(first_step, num_steps=10**6):
    """The batch of a step is a function of the step alone."""
    for step in range(first_step, num_steps):
        yield {"x": np.random.default_rng(step).normal(size=(8, 4)).astype(np.float32)}


def assert_same(a, b):
    leaves_a, tree_a = jax.tree.flatten(a)
    leaves_b, tree_b = jax.tree.flatten(b)
    assert tree_a == tree_b
    for x, y in zip(leaves_a, leaves_b, strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
