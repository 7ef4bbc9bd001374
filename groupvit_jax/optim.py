"""The optimizer of the published recipe: AdamW, clipped, with warm-up and timm's cosine."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from groupvit_jax.typing import Params, PyTree


def make_schedule(
    config: ConfigDict, batch_size: int, num_steps: int, warmup_steps: int
) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    Linear from `warmup_learning_rate` to the peak, then the cosine from the peak at step 0 to
    `final_learning_rate` at `num_steps`: the warm-up covers the cosine's beginning and does not
    shift it (as timm's scheduler has it). Only the peak is scaled with the batch size.

    Args:
      config: `config.optimizer`.
      batch_size: global batch size.
      num_steps: length of the run.
      warmup_steps: length of the warm-up; may be 0.

    Raises:
      ValueError: the warm-up is not shorter than the run.
    """
    if not 0 <= warmup_steps < num_steps:
        raise ValueError(
            f"config.optimizer: a warm-up of {warmup_steps} steps found, expected at least 0 and "
            f"less than the run's {num_steps} steps (set warmup_steps or warmup_epochs)"
        )
    peak = config.learning_rate * batch_size / config.reference_batch_size
    start, end = config.warmup_learning_rate, config.final_learning_rate

    def schedule(step: Any) -> Any:
        step = jnp.asarray(step, jnp.float32)
        warmup = start + (peak - start) * step / max(warmup_steps, 1)
        progress = jnp.minimum(step / num_steps, 1.0)
        cosine = end + (peak - end) * (1 + jnp.cos(jnp.pi * progress)) / 2
        return jnp.where(step < warmup_steps, warmup, cosine)

    return schedule


def decay_mask(params: Params) -> PyTree:
    """Returns which parameters decay: all but biases, normalisation scales and 1-D ones.

    Logit scales (0-D), position embeddings and group tokens do decay, as published.
    """

    def decays(path: tuple[Any, ...], param: Any) -> bool:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return name not in ("bias", "scale") and param.ndim != 1

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(
    config: ConfigDict, schedule: optax.Schedule, params: Params
) -> optax.GradientTransformation:
    """Returns AdamW with decoupled weight decay behind a clip of the gradient's global norm.

    Args:
      config: `config.optimizer`.
      schedule: learning rate as a function of the step.
      params: the parameters, or their shapes.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decay_mask(params),
        ),
    )
