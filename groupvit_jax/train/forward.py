"""Shared by the forward passes of all tasks: placement on the mesh, noise, use of the groups."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from groupvit_jax import parallel
from groupvit_jax.models import fused_attention as fused_attention_lib
from groupvit_jax.models.blocks import with_execution
from groupvit_jax.models.kernels import stacks
from groupvit_jax.train.state import TrainState
from groupvit_jax.train.step import Metrics
from groupvit_jax.typing import Array, Batch, ImageFeatures, Int, Key

# The order decides which key each kind gets: a change of it changes the noise of every run.
NOISE = ("drop_path", "gumbel", "random_erasing")


def on_mesh(model: Any, mesh: Mesh, *, fused_attention: bool = False) -> Any:
    """Return the model with its activations sharded by example in every block.

    Args:
      model: with the towers of `TwoTower`, or one of them.
      mesh: the device mesh.
      fused_attention: whether the image tower's attention is one kernel.
    """
    sharding = parallel.batch_sharding(mesh)
    # Without the constraint, XLA may move activations to sharded parameters, instead of gathering
    # the parameters where the examples are.
    changes: dict[str, Any] = {"constrain": lambda x: jax.lax.with_sharding_constraint(x, sharding)}
    if fused_attention:
        kernel = fused_attention_lib.KERNELS[mesh.devices.flat[0].platform]
        # XLA can't partition a custom kernel: each device gets its examples and its heads.
        spec = PartitionSpec(parallel.BATCH_AXES, "tensor")
        changes["attention_fn"] = jax.shard_map(
            kernel, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
        )
    return with_execution(model, **changes)


def with_kernels(
    model: Any, mesh: Mesh, choice: str, *, within_shard_map: bool
) -> tuple[Any, bool]:
    """Return the model with its blocks run by fused kernels, and whether the mesh has any.

    Args:
      model: with the towers of `TwoTower`, or one of them.
      mesh: the device mesh.
      choice: `config.model.kernels`.
      within_shard_map: whether the model is applied inside a `jax.shard_map` over the mesh.
    """
    stack_fn = None
    if choice != "plain":
        stack_fn = stacks.stack_fn(mesh, within_shard_map=within_shard_map)
    return with_execution(model, stack_fn=stack_fn), stack_fn is not None


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
