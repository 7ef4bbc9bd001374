"""One jitted training step over the global batch, whatever the task."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from groupvit_jax import optim, parallel
from groupvit_jax.train.state import TrainState
from groupvit_jax.typing import Array, Batch, Float, PyTree

Metrics = dict[str, Float[Array, ""]]
# (params, state, global batch) -> loss, (new batch statistics, metrics)
LossFn = Callable[[PyTree, TrainState, Batch], tuple[Float[Array, ""], tuple[PyTree, Metrics]]]


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    state_shardings: PyTree,
    groups: Sequence[tuple[str, float]],
) -> Any:
    """Return the jitted `(state, batch) -> (state, metrics)`, which donates the given state.

    Args:
      loss_fn: the loss of a task, from its `make_loss`.
      optimizer: from `optim.make_optimizer`.
      schedule: the optimizer's learning rate, reported as a metric.
      mesh: the device mesh.
      state_shardings: shardings of the state, from `create_sharded_state`.
      groups: `config.optimizer.groups`; parameters of a group with factor 0 are frozen.

    Returns:
      A jitted function of the state and a global batch (see `typing.Batch`). Its metrics are
      float32 scalars: those of the loss, `gradient_norm` (before clipping), `update_norm`,
      `parameter_norm` (after the update) and `learning_rate`.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        def trainable_loss(params: PyTree) -> tuple[Float[Array, ""], tuple[PyTree, Metrics]]:
            # Stopped here rather than masked in the optimizer, so that XLA drops the backward pass
            # of frozen layers.
            params = optim.stop_frozen_gradients(params, groups)
            return loss_fn(params, state, batch)

        gradients, (batch_stats, metrics) = jax.grad(trainable_loss, has_aux=True)(state.params)
        metrics["learning_rate"] = schedule(state.step)
        state, norms = apply_gradients(state, optimizer, gradients, batch_stats)
        return state, jax.tree.map(jnp.float32, metrics | norms)

    return jax.jit(
        train_step,
        in_shardings=(state_shardings, parallel.batch_sharding(mesh)),
        out_shardings=(state_shardings, parallel.replicated(mesh)),
        # The new state takes the old one's buffers: without donation, parameters and both moments
        # of AdamW would be held twice.
        donate_argnums=0,
    )


def apply_gradients(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    gradients: PyTree,
    batch_stats: PyTree,
) -> tuple[TrainState, Metrics]:
    """Return the state after the update, and the norms of gradients, update and new parameters."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    norms = {
        "gradient_norm": optax.tree.norm(gradients),
        "update_norm": optax.tree.norm(updates),
        # Finite exactly when every new parameter is: the loss of this step can't show a parameter
        # that this step has made NaN.
        "parameter_norm": optax.tree.norm(params),
    }
    return TrainState(state.step + 1, params, batch_stats, opt_state, state.key), norms
