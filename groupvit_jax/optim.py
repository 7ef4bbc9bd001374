"""The optimizer of the published recipe: clipped AdamW, timm's warm-up and cosine schedule."""

import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from groupvit_jax.typing import Array, Float, Int, Params, PyTree

# The rates that follow the batch size: all of them, as published, or the peak alone.
SCALED_RATES = ("all", "peak")


def make_schedule(
    learning_rate: float,
    num_steps: int,
    warmup_steps: int,
    *,
    start: float = 0.0,
    end: float = 0.0,
    batch_size_ratio: float = 1.0,
    scaled_rates: str = "all",
    update_lag: int = 0,
) -> optax.Schedule:
    """Return the learning rate as a function of the step: linear warm-up, then a cosine.

    The cosine runs from the peak at step 0 to `end` at `num_steps`. The warm-up replaces its
    beginning and does not shift it, as in timm's scheduler: optax's own warm-up cosine starts at
    the end of the warm-up, which is another curve.

    Args:
      learning_rate: peak, for the reference batch size, as are `start` and `end`.
      num_steps: length of the run.
      warmup_steps: length of the warm-up; may be 0.
      start: rate at step 0 of a warm-up.
      end: rate at the end of the run.
      batch_size_ratio: batch size over the reference batch size, which scales the rates (linear
        scaling rule, arXiv 1706.02677).
      scaled_rates: "all" scales the peak and both ends, "peak" leaves `start` and `end` as they
        are.
      update_lag: updates by which the rate lags behind the step. The published training sets a
        step's rate after its update, so that update i has the rate of step max(i - 1, 0).

    Raises:
      ValueError: the warm-up is not shorter than the run.
    """
    if not 0 <= warmup_steps < num_steps:
        raise ValueError(
            f"config.optimizer: a warm-up of {warmup_steps} steps found, expected at least 0 and "
            f"less than the run's {num_steps} steps (set warmup_steps or warmup_epochs)"
        )
    peak = learning_rate * batch_size_ratio
    if scaled_rates == "all":
        start, end = start * batch_size_ratio, end * batch_size_ratio

    def schedule(step: Any) -> Any:
        step = jnp.maximum(jnp.asarray(step, jnp.float32) - update_lag, 0.0)
        # `where` below computes both curves: without a warm-up this one must not divide by 0.
        warmup = start + (peak - start) * step / max(warmup_steps, 1)
        # Behind the end the cosine would rise again.
        progress = jnp.minimum(step / num_steps, 1.0)
        cosine = end + (peak - end) * (1 + jnp.cos(jnp.pi * progress)) / 2
        return jnp.where(step < warmup_steps, warmup, cosine)

    return schedule


def decay_mask(params: Params) -> PyTree:
    """Return the mask of parameters with weight decay: all but biases, norms' scales and 1-D ones.

    Logit scales (0-D), position embeddings and group tokens decay: the published model was trained
    that way, and its numbers depend on it.
    """

    def decays(path: tuple[Any, ...], param: Any) -> bool:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return name not in ("bias", "scale") and param.ndim != 1

    return jax.tree_util.tree_map_with_path(decays, params)


def learning_rate_factors(params: Params, groups: Sequence[tuple[str, float]]) -> PyTree:
    """Return the factor of each parameter's learning rate; 0 means frozen.

    Args:
      params: the parameters, or their shapes.
      groups: `config.optimizer.groups`, (regex, factor) pairs. The first regex found in a
        parameter's path, such as "text_encoder/blocks_0/attn/qkv/kernel", decides; without a match
        the factor is 1.

    Raises:
      ValueError: a regex doesn't compile or matches no parameter, or a factor is negative.
    """
    paths = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern, factor in groups:
        if not any(_compiled(pattern).search(path) for path in paths):
            raise ValueError(
                f"config.optimizer.groups: {pattern!r} matches no parameter, expected a part of a "
                f"path such as {paths[0]!r}"
            )
        # Not `factor < 0`, which lets NaN pass.
        if not factor >= 0:
            raise ValueError(
                f"config.optimizer.groups: {factor} found for {pattern!r}, expected at least 0"
            )

    def factor_of(path: tuple[Any, ...], _: Any) -> float:
        name = _name(path)
        return next((float(f) for p, f in groups if _compiled(p).search(name)), 1.0)

    return jax.tree_util.tree_map_with_path(factor_of, params)


def layer_decay_groups(
    depths: Sequence[int], num_group_tokens: Sequence[int], decay: float
) -> tuple[tuple[str, float], ...]:
    """Return `config.optimizer.groups` that slow down the lower layers of the image tower.

    Layer l of L has the factor `decay ** (L - l)`, as in BEiT's fine-tuning (arXiv 2106.08254).
    Layer 0 are patch and position embedding, each transformer block and each grouping block is one
    layer, and layer L are the last normalisation and everything behind the tower. A stage's group
    tokens belong to the layer before its first block.

    Args:
      depths: `config.model.image.depths`.
      num_group_tokens: `config.model.image.num_group_tokens`.
      decay: over 0, up to 1.

    Raises:
      ValueError: the decay is no such number.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"layer decay: {decay} found, expected over 0, at most 1")
    # The prefix below reaches a pattern's first alternative only; further ones carry their own.
    layers = [r"patch_embed/|^image_encoder/position_embedding"]
    for stage, (depth, tokens) in enumerate(zip(depths, num_group_tokens, strict=True)):
        prefix = rf"stages_{stage}/"
        if tokens:
            layers[-1] += rf"|^image_encoder/{prefix}group_(token|projector)\b"
        layers += [rf"{prefix}blocks_{block}/" for block in range(depth)]
        layers += [rf"{prefix}downsample/"] if tokens else []
    # From `decay ** L` at the bottom to `decay` at the top; without a match (layer L) it is 1.
    factors = [decay**above for above in range(len(layers), 0, -1)]
    return tuple((f"^image_encoder/{p}", f) for p, f in zip(layers, factors, strict=True))


def stop_frozen_gradients(params: Params, groups: Sequence[tuple[str, float]]) -> Params:
    """Return the same parameters, the frozen ones as constants to `jax.grad`.

    Backpropagation then stops above frozen layers, which saves their backward pass, and their zero
    gradients don't count in norms and clipping.
    """
    if not groups:
        return params
    factors = learning_rate_factors(params, groups)
    return jax.tree.map(lambda x, f: x if f else jax.lax.stop_gradient(x), params, factors)


def make_optimizer(
    config: ConfigDict, schedule: optax.Schedule, params: Params
) -> optax.GradientTransformation:
    """Return AdamW with decoupled weight decay, behind a clip of the gradient's global norm.

    Frozen parameters have no optimizer state and no weight decay, and don't count in the norm.

    Args:
      config: `config.optimizer`.
      schedule: learning rate as a function of the step.
      params: the parameters, or their shapes.

    Raises:
      ValueError: `config.groups` doesn't fit the parameters.
    """
    optimizer = optax.chain(
        clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        ),
    )
    if not config.groups:
        return optimizer
    factors = learning_rate_factors(params, config.groups)
    trained = jax.tree.map(bool, factors)
    # The factors scale the finished update: scaling gradients would change nothing, since Adam
    # divides by their size.
    return optax.chain(optax.masked(optimizer, trained), _scale_each(factors))


def update_average(average: PyTree, values: PyTree, decay: float, number: Int[Array, ""]) -> PyTree:
    """Return the exponential moving average of `number` values, corrected for its start.

    As Adam's moments (arXiv 1412.6980, section 3): value i of n has a weight proportional to
    `decay ** (n - i)`, and the weights sum to one, so the average holds nothing of the values
    before the first. The newest has the weight `(1 - decay) / (1 - decay ** number)`.

    Args:
      average: of the values before.
      values: the newest.
      decay: between 0 and 1, both excluded.
      number: of values, this one included.
    """
    # `1 - decay ** number` in float32 would lose half of its digits for a decay near 1.
    weight = (1 - decay) / -jnp.expm1(number * math.log(decay))
    return jax.tree.map(lambda a, x: a + weight * (x - a), average, values)


def global_norm(tree: PyTree) -> Float[Array, ""]:
    """Return the Euclidean norm over all arrays, as `optax.tree.norm`.

    Vectors are summed as one: most arrays are vectors of a few hundred numbers, and on a TPU a sum
    over each takes longer than reading them.
    """
    leaves = jax.tree.leaves(tree)
    vectors = [x for x in leaves if x.ndim == 1]
    arrays = [x for x in leaves if x.ndim != 1]
    if vectors:
        arrays.append(jnp.concatenate(vectors))
    return jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in arrays))


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Return `optax.clip_by_global_norm`, with this module's norm."""

    def clip(updates: PyTree, params: PyTree = None) -> PyTree:
        del params
        norm = global_norm(updates)
        return jax.tree.map(lambda x: jnp.where(norm < max_norm, x, x / norm * max_norm), updates)

    return optax.stateless(clip)


def _scale_each(factors: PyTree) -> optax.GradientTransformation:
    def scale(updates: PyTree, params: PyTree = None) -> PyTree:
        del params
        # Not multiplied where the factor is 0: a frozen parameter's update may be infinite or NaN.
        return jax.tree.map(lambda u, f: u * f if f else jnp.zeros_like(u), updates, factors)

    return optax.stateless(scale)


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"config.optimizer.groups: {pattern!r} is no regular expression ({error})"
        ) from error


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
