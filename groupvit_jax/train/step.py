"""One jitted training step over the global batch."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from groupvit_jax import losses, optim, parallel
from groupvit_jax.data import device_ops
from groupvit_jax.train.state import TrainState
from groupvit_jax.typing import Array, Batch, Float, ImageFeatures, Key, PyTree, TwoTowerOutput

Metrics = dict[str, Float[Array, ""]]
NOISE = ("drop_path", "gumbel", "random_erasing")


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: ConfigDict,
    mesh: Mesh,
    state_shardings: PyTree,
) -> Any:
    """Returns the jitted `(state, batch) -> (state, metrics)`; the given state is consumed.

    Args:
      model: a model with `TwoTower`'s call.
      optimizer: what `optim.make_optimizer` returns.
      schedule: the optimizer's learning rate, for the metrics.
      config: the whole configuration; `loss`, `data.augment.random_erasing` and
        `optimizer.groups` are used.
      mesh: the device mesh.
      state_shardings: what `create_sharded_state` returns beside the state.

    Returns:
      A jitted function of the state and a global batch (see `typing.Batch`). Its metrics are
      float32 scalars of the step: `loss`, for each loss `global/...` and `multi_label/...` the
      weightless `loss` and what `losses` yields, `gradient_norm` (before clipping),
      `update_norm`, `parameter_norm` (after the update: it is finite if the new parameters are),
      `learning_rate`, `text_overflow` (share of the images with a prompt that did not fit) and
      `groups_in_use/stage_I`.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        keys = noise_keys(state)
        images = device_ops.random_erasing(
            keys.pop("random_erasing"),
            device_ops.normalize(batch["image"]),
            config.data.augment.random_erasing,
        )

        def loss_fn(params: PyTree) -> tuple[Float[Array, ""], tuple[PyTree, Metrics]]:
            params = optim.stop_frozen_gradients(params, config.optimizer.groups)
            variables = {"params": params, "batch_stats": state.batch_stats}
            output, updated = model.apply(
                variables,
                images,
                batch["text"],
                batch["text_ends"],
                train=True,
                rngs=keys,
                mutable=["batch_stats"],
            )
            loss, metrics = contrastive_loss(_shard_by_example(output, mesh), config.loss)
            return loss, (updated["batch_stats"], metrics | groups_in_use(output.image_features))

        gradients, (batch_stats, metrics) = jax.grad(loss_fn, has_aux=True)(state.params)
        metrics["learning_rate"] = schedule(state.step)
        metrics["text_overflow"] = (batch["text_overflow"] > 0).mean()
        state, norms = apply_gradients(state, optimizer, gradients, batch_stats)
        return state, jax.tree.map(jnp.float32, metrics | norms)

    return jax.jit(
        train_step,
        in_shardings=(state_shardings, parallel.batch_sharding(mesh)),
        out_shardings=(state_shardings, parallel.replicated(mesh)),
        donate_argnums=0,
    )


def _shard_by_example(output: TwoTowerOutput, mesh: Mesh) -> TwoTowerOutput:
    """Keeps a sharded last layer from drawing the towers into its own sharding."""
    image, text = (
        jax.lax.with_sharding_constraint(embedding, parallel.batch_sharding(mesh))
        for embedding in (output.image, output.text)
    )
    return output._replace(image=image, text=text)


def apply_gradients(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    gradients: PyTree,
    batch_stats: PyTree,
) -> tuple[TrainState, Metrics]:
    """Returns the state after the step, and the norms of gradients, update and new parameters."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    norms = {
        "gradient_norm": optax.tree.norm(gradients),
        "update_norm": optax.tree.norm(updates),
        "parameter_norm": optax.tree.norm(params),
    }
    return TrainState(state.step + 1, params, batch_stats, opt_state, state.key), norms


def noise_keys(state: TrainState) -> dict[str, Key[Array, ""]]:
    """Returns the step's keys by kind of noise: a pure function of the run's key and the step."""
    keys = jax.random.split(jax.random.fold_in(state.key, state.step), len(NOISE))
    return dict(zip(NOISE, keys, strict=True))


def contrastive_loss(
    output: TwoTowerOutput, config: ConfigDict
) -> tuple[Float[Array, ""], Metrics]:
    """Returns the weighted sum of the global and, where there are prompts, multi-label loss.

    Args:
      output: of the model; text 0 of an image is its caption, the others its prompts.
      config: `config.loss`.
    """
    value, found = losses.global_contrastive_loss(
        output.image, output.text[:, 0], output.logit_scale
    )
    loss = config.global_weight * value
    metrics = {"global/loss": value} | {f"global/{name}": m for name, m in found.items()}
    if output.text.shape[1] > 1:
        value, found = losses.multi_label_contrastive_loss(
            output.image, output.text[:, 1:], output.multi_label_logit_scale
        )
        loss += config.multi_label_weight * value
        metrics |= {"multi_label/loss": value}
        metrics |= {f"multi_label/{name}": m for name, m in found.items()}
    return loss, metrics | {"loss": loss}


def groups_in_use(features: ImageFeatures) -> Metrics:
    """Returns by stage how many groups, in the mean over images, are the best of some segment."""
    metrics = {}
    for stage, assignment in enumerate(features.assignments):
        best = jax.nn.one_hot(assignment.argmax(axis=1), assignment.shape[1], dtype=bool)
        metrics[f"groups_in_use/stage_{stage}"] = best.any(axis=1).sum(axis=1).mean()
    return metrics
