"""Encodes a batch in micro-batches without keeping their activations (GradCache, 2101.06983).

The losses and BatchNorm need the features of the whole batch at once, the encoders do not: only
the features are kept, and backward, each micro-batch is encoded again, with the same noise, to
carry the features' gradients on to the parameters.
"""

from collections.abc import Callable

import jax
from jax.sharding import Mesh, PartitionSpec

from groupvit_jax import parallel
from groupvit_jax.typing import PyTree

Encode = Callable[[PyTree, PyTree, PyTree], PyTree]


def in_micro_batches(encode: Encode, micro_batch_size: int, mesh: Mesh) -> Encode:
    """Returns `encode` of a batch, one micro-batch after the other.

    A micro-batch takes the next rows of every device's share, so no row changes its device. What
    axis `tensor` shards stays so; parameters sharded over `fsdp` are gathered once a step, not once
    a micro-batch, and their gradients are summed over the devices once, behind the last one.

    Args:
      encode: a function of parameters, keys and rows `[B, ...]` whose features `[B, ...]` depend on
        their own row only.
      micro_batch_size: rows at once, over all devices; see `check_micro_batch_size`.
      mesh: the device mesh.
    """
    rows_per_device = micro_batch_size // parallel.num_batch_shards(mesh)

    def on_device(params: PyTree, keys: PyTree, rows: PyTree) -> PyTree:
        # Its transpose is the sum of gradients over the devices. Here it stands outside the loop;
        # left out, JAX would insert it where a parameter is used.
        params = jax.tree.map(lambda x: jax.lax.pcast(x, parallel.BATCH_AXES, to="varying"), params)
        micro_batches = jax.tree.map(lambda x: x.reshape(-1, rows_per_device, *x.shape[1:]), rows)
        again = jax.checkpoint(lambda rows: encode(params, keys, rows), prevent_cse=False)
        features = jax.lax.map(again, micro_batches)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), features)

    by_row = PartitionSpec(parallel.BATCH_AXES)
    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(), by_row),
        out_specs=by_row,
        axis_names=set(parallel.BATCH_AXES),
    )


def check_micro_batch_size(micro_batch_size: int | None, batch_size: int, mesh: Mesh) -> None:
    """Raises ValueError unless micro-batches divide the batch and the devices divide them."""
    if micro_batch_size is None:
        return
    num_shards = parallel.num_batch_shards(mesh)
    if micro_batch_size < 1 or batch_size % micro_batch_size or micro_batch_size % num_shards:
        raise ValueError(
            f"config.train.micro_batch_size: {micro_batch_size} found, expected a divisor of "
            f"config.train.batch_size {batch_size} and a multiple of {num_shards} "
            f"({mesh.shape['data']} data x {mesh.shape['fsdp']} fsdp shards)"
        )
