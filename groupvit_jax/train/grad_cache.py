"""Encoding a batch in micro-batches without keeping activations (GradCache, arXiv 2101.06983).

Losses and BatchNorm need the features of the whole batch at once, the encoders do not. So only the
features are kept; in the backward pass each micro-batch is encoded again, with the same noise, to
carry the gradients of its features on to the parameters. Memory is that of one micro-batch, at the
price of a second forward pass.
"""

from collections.abc import Callable

import jax
from jax.sharding import Mesh, PartitionSpec

from groupvit_jax import parallel
from groupvit_jax.typing import PyTree

Encode = Callable[[PyTree, PyTree, PyTree], PyTree]


def in_micro_batches(
    encode: Encode, micro_batch_size: int, mesh: Mesh, *, with_kernels: bool = False
) -> Encode:
    """Return `encode` for a whole batch, computed one micro-batch after another.

    A micro-batch takes the next rows of every device's share, so no row moves between devices.
    Gradients are summed over the devices once, after the last micro-batch.

    Args:
      encode: a function of parameters, keys and rows `[B, ...]`; each row of its features
        `[B, ...]` depends on its own input row only.
      micro_batch_size: rows at once, over all devices; see `check_micro_batch_size`.
      mesh: the device mesh.
      with_kernels: `encode` calls Pallas kernels; the mesh has no `tensor` axis then.
    """
    rows_per_device = micro_batch_size // parallel.num_batch_shards(mesh)

    def one_after_another(params: PyTree, keys: PyTree, rows: PyTree) -> PyTree:
        # [rows of a device, ...] -> [micro-batches, rows of each, ...]
        micro_batches = jax.tree.map(lambda x: x.reshape(-1, rows_per_device, *x.shape[1:]), rows)
        # The loop already keeps XLA from merging both forward passes, so the barriers of
        # `prevent_cse` would only cost time.
        again = jax.checkpoint(lambda rows: encode(params, keys, rows), prevent_cse=False)
        features = jax.lax.map(again, micro_batches)
        # And back, in the order of the batch: the losses pair rows by position.
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), features)

    return on_each_device(one_after_another, mesh, with_kernels=with_kernels)


def on_each_device(encode: Encode, mesh: Mesh, *, with_kernels: bool = False) -> Encode:
    """Return `encode` for a whole batch, computed by each device on its own rows.

    Gradients are summed over the devices once a step, in the type of the parameters, float32: left
    to XLA, they are summed where they are computed, in the type of the computation. Parameters
    sharded over `tensor` stay sharded; those sharded over `fsdp` are gathered once a step, not
    block by block.

    Args:
      encode: see `in_micro_batches`.
      mesh: the device mesh.
      with_kernels: see `in_micro_batches`.
    """

    def on_device(params: PyTree, keys: PyTree, rows: PyTree) -> PyTree:
        if not with_kernels:
            # The transpose of `pcast` sums gradients over the devices. Here it does so once a
            # step; without it, JAX inserts a cast, and a sum, at every use of a parameter, in every
            # micro-batch. Where nothing is checked, JAX inserts none, and sums where `shard_map`
            # ends.
            params = jax.tree.map(
                lambda x: jax.lax.pcast(x, parallel.BATCH_AXES, to="varying"), params
            )
        return encode(params, keys, rows)

    by_row = PartitionSpec(parallel.BATCH_AXES)
    sharded = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(), by_row),
        out_specs=by_row,
        # Pallas kernels can be called only where every axis is manual, and interpreted only without
        # the check of what varies over the devices.
        axis_names=set(mesh.axis_names if with_kernels else parallel.BATCH_AXES),
        check_vma=not with_kernels,
    )

    def encode_all(params: PyTree, keys: PyTree, rows: PyTree) -> PyTree:
        # `launch.plan` reads what a sum over devices is for.
        with jax.named_scope("on_each_device"):
            return sharded(params, keys, rows)

    return encode_all


def check_micro_batch_size(micro_batch_size: int | None, batch_size: int, mesh: Mesh) -> None:
    """Raise ValueError unless micro-batches divide the batch and devices divide micro-batches."""
    if micro_batch_size is None:
        return
    num_shards = parallel.num_batch_shards(mesh)
    if micro_batch_size < 1 or batch_size % micro_batch_size or micro_batch_size % num_shards:
        raise ValueError(
            f"config.train.micro_batch_size: {micro_batch_size} found, expected a divisor of "
            f"config.train.batch_size {batch_size} and a multiple of {num_shards} "
            f"({mesh.shape['data']} data x {mesh.shape['fsdp']} fsdp shards)"
        )
