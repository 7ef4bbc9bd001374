"""Shared by the forward passes of all tasks: placement on the mesh, noise, use of the groups."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from groupvit_jax import parallel
from groupvit_jax.losses import l2_normalize
from groupvit_jax.models import fused_attention as fused_attention_lib
from groupvit_jax.models.blocks import with_execution
from groupvit_jax.models.fused_attention import has_cudnn
from groupvit_jax.models.grouping import group_maps
from groupvit_jax.models.kernels import stacks
from groupvit_jax.models.layers import attend
from groupvit_jax.train.state import TrainState
from groupvit_jax.train.step import Metrics
from groupvit_jax.typing import Array, Batch, Float, ImageFeatures, Int, Key

# The order decides which key each kind gets: a change of it changes the noise of every run.
NOISE = ("drop_path", "gumbel", "random_erasing")


def on_mesh(
    model: Any,
    mesh: Mesh,
    *,
    kernels: str = "plain",
    fused_attention: bool = False,
    within_shard_map: bool = False,
) -> tuple[Any, bool]:
    """Return the model as the mesh's devices compute it, and whether it calls kernels.

    Args:
      model: with the towers of `TwoTower`, or one of them.
      mesh: the device mesh.
      kernels: `config.model.kernels`. With "auto", blocks are fused on TPUs, and on NVIDIA's GPUs
        the image tower's attention is cuDNN's.
      fused_attention: whether the image tower's attention is one kernel on any device that has one.
      within_shard_map: whether the model is applied inside a `jax.shard_map` over the mesh.
    """
    device, changes = mesh.devices.flat[0], dict[str, Any]()
    attention_fn = stack_fn = None
    if not within_shard_map:
        # Without the constraint, XLA may move activations to sharded parameters, instead of
        # gathering the parameters where the examples are. In a `shard_map` the batch axes are
        # manual, and a constraint on them is an error.
        sharding = parallel.batch_sharding(mesh)
        changes["constrain"] = lambda x: jax.lax.with_sharding_constraint(x, sharding)
    if kernels != "plain":
        stack_fn = changes["stack_fn"] = stacks.stack_fn(mesh, within_shard_map=within_shard_map)
    if fused_attention or (kernels != "plain" and has_cudnn(device)):
        attention_fn = fused_attention_lib.attention_fn(mesh, within_shard_map=within_shard_map)
    if attention_fn is not None:
        changes["attention_fn"] = attention_fn
    elif device.platform == "tpu":
        changes["attention_fn"] = functools.partial(attend, normalize_first=True)
    has_kernels = attention_fn is not None or stack_fn is not None
    return with_execution(model, **changes), has_kernels


def noise_ids(batch: Batch, mesh: Mesh) -> Int[Array, "B"]:
    """Return the number by which each example draws its noise: its place in the global batch.

    The noise of an example then doesn't depend on which device, host or micro-batch it is in.
    """
    ids = jnp.arange(len(batch["image"]))
    return jax.lax.with_sharding_constraint(ids, parallel.batch_sharding(mesh))


def noise_keys(state: TrainState) -> dict[str, Key[Array, ""]]:
    """Return the step's key for each kind of noise.

    The keys are folded from the run's key and the step, not split off and carried along: a resumed
    run draws the same noise without any state of a generator.
    """
    keys = jax.random.split(jax.random.fold_in(state.key, state.step), len(NOISE))
    return dict(zip(NOISE, keys, strict=True))


def patch_groups(features: ImageFeatures) -> Float[Array, "B L G"]:
    """Return the soft assignment of the patches to the groups of the last grouping stage."""
    L = features.assignments[0].shape[2]
    return group_maps(features.assignments, (1, L))[-1][:, 0]


def group_statistics(features: ImageFeatures) -> dict[str, Float[Array, "B"]]:
    """Return what tells a collapse of the grouping, for each image and metric.

    A model whose grouping has collapsed uses one group an image, whatever its loss: its patches all
    go to one group, or its groups are all alike.

    Returns:
      For each grouping stage I `groups_in_use/stage_I`, the number of groups that are the best
      match of some segment, `largest_group/stage_I`, the share of the image's patches in the
      largest group, and `assignment_entropy/stage_I`, the mean entropy of the segments' soft
      assignments, over its largest value: 0 when decided, 1 when all groups are alike. And
      `group_cosine`, the mean cosine between the groups of the last stage, 1 for one group.
    """
    # A measurement only: without this, micro-batches would carry zeros backward through it.
    features = jax.lax.stop_gradient(features)
    found: dict[str, Float[Array, "B"]] = {}
    L = features.assignments[0].shape[2] if features.assignments else 1
    # As one row of patches: these metrics don't depend on the image's proportions.
    of_patches = group_maps(features.assignments, (1, L))
    for stage, (assignment, maps) in enumerate(zip(features.assignments, of_patches, strict=True)):
        G = assignment.shape[1]
        best = jax.nn.one_hot(assignment.argmax(axis=1), G, dtype=bool)  # [B, S, G]
        found[f"groups_in_use/stage_{stage}"] = best.any(axis=1).sum(axis=1, dtype=jnp.float32)
        patches = jax.nn.one_hot(maps[:, 0].argmax(axis=2), G).sum(axis=1)  # [B, L, G] -> [B, G]
        found[f"largest_group/stage_{stage}"] = patches.max(axis=1) / L
        soft = assignment.astype(jnp.float32)
        # 0 log 0 is 0: a decided assignment has groups without any share.
        entropy = -jax.scipy.special.xlogy(soft, soft).sum(axis=1).mean(axis=1)
        # With one group the entropy is 0, and dividing by log 1 would make it NaN.
        found[f"assignment_entropy/stage_{stage}"] = entropy / math.log(max(G, 2))
    return found | {"group_cosine": _mean_cosine(features.segments)}


def _mean_cosine(segments: Float[Array, "B G C"]) -> Float[Array, "B"]:
    """Return the mean cosine of all pairs, by the square of their sum; 1 without a pair."""
    G = segments.shape[1]
    total = l2_normalize(segments).sum(axis=1)
    # |sum|² adds up the cosines of all ordered pairs, G of which are a segment with itself.
    return (jnp.square(total).sum(axis=1) - G) / (G * (G - 1)) if G > 1 else jnp.ones(len(total))


def batch_means(statistics: dict[str, Float[Array, "B"]]) -> Metrics:
    """Return the mean of each over the batch."""
    return {name: values.mean() for name, values in statistics.items()}
