"""Shared by the forward passes of all tasks: placement on the mesh, noise, use of the groups."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from groupvit_jax import parallel
from groupvit_jax.models import fused_attention as fused_attention_lib
from groupvit_jax.models.blocks import with_execution
from groupvit_jax.models.fused_attention import has_cudnn
from groupvit_jax.models.kernels import stacks
from groupvit_jax.models.layers import attend
from groupvit_jax.train.state import TrainState
from groupvit_jax.train.step import Metrics
from groupvit_jax.typing import Array, Batch, ImageFeatures, Int, Key

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


def groups_in_use(features: ImageFeatures) -> dict[str, Int[Array, "B"]]:
    """Return, by stage, how many groups of each image are the best match of some segment.

    A model whose grouping has collapsed uses one group an image, whatever its loss.
    """
    counts = {}
    for stage, assignment in enumerate(features.assignments):
        best = jax.nn.one_hot(assignment.argmax(axis=1), assignment.shape[1], dtype=bool)
        counts[f"stage_{stage}"] = best.any(axis=1).sum(axis=1)
    return counts


def mean_in_use(counts: dict[str, Int[Array, "B"]]) -> Metrics:
    """Return the metrics `groups_in_use/stage_I`: the counts' mean over the batch."""
    return {f"groups_in_use/{stage}": count.mean() for stage, count in counts.items()}
