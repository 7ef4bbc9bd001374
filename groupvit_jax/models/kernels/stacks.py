"""When stacks of transformer blocks run by the fused kernels, and how over a mesh."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from groupvit_jax import parallel
from groupvit_jax.models.kernels import block_math, fused_blocks
from groupvit_jax.models.layers import LAYER_NORM_EPS, TransformerBlock
from groupvit_jax.typing import Array, Bool, Float, Params

# (block, parameters of each block, x, mask, branch_scales) -> output, or None: not by kernels.
# The arguments are those of `blocks.run_blocks`.
StackFn = Callable[
    [Any, Sequence[Params], Array, Array | None, Array | None], Float[Array, "B S C"] | None
]

_MIB = 2**20
# Vector memory that a kernel may take, by `Device.device_kind`: four fifths of what a core has (128
# and, of v5p and 7x, 64 MiB), the rest is the compiler's own. Chips before have 16 MiB, in which no
# shipped width leaves room for gradients.
VMEM_BYTES = {
    "TPU v5 lite": 100 * _MIB,
    "TPU v5": 50 * _MIB,
    "TPU v6 lite": 100 * _MIB,
    "TPU7x": 50 * _MIB,
}
_REGISTER_ROWS = 8  # tokens of one column of registers: rows begin at their edges
# A program has about this many tokens. The weights' gradients are products over the tokens, in
# tiles of 128 (the last one mostly empty at 264), and are added to sums in memory once a program:
# 2 x 264 tokens take 8 % less than 264, more compile longer for little.
TOKENS_A_PROGRAM = 528
# Attention is unrolled row by row, and a row tile by tile: beyond these sizes the kernels' programs
# would be too long to compile.
MOST_ROWS = 16
LONGEST_ROW = 640


def stack_fn(mesh: Mesh, *, within_shard_map: bool = False) -> StackFn | None:
    """Return what runs stacks of blocks on a mesh; None where no kernel can.

    Values and gradients are those of the plain blocks, up to rounding; `remat` and `scan_layers`
    have no meaning here.

    Args:
      mesh: the devices. With a `tensor` axis of more than one device the blocks' matrices are
        divided, and the kernels need them whole.
      within_shard_map: the caller is in a `jax.shard_map` over the mesh; else it is in a `jax.jit`.
    """
    device = mesh.devices.flat[0]
    vmem_bytes = VMEM_BYTES.get(device.device_kind)
    if vmem_bytes is None or mesh.shape["tensor"] > 1:
        return None
    shards = 1 if within_shard_map else parallel.num_batch_shards(mesh)

    def run(
        block: Any,
        params: Sequence[Params],
        x: Float[Array, "B S C"],
        mask: Bool[Array, "B S S"] | None,
        branch_scales: Float[Array, "D 2 B"] | None,
    ) -> Float[Array, "B S C"] | None:
        # `shard_map` takes equal shares only; the plain blocks, under `jit`, take any.
        if len(x) % shards:
            return None
        stack = choose_stack(block, x.shape, len(x) // shards, vmem_bytes)
        if stack is None:
            return None
        if device.platform != "tpu":
            stack = dataclasses.replace(stack, interpret=True)

        def on_device(x: Array, weights: Any, mask: Any, scales: Any) -> Array:
            return _run(stack, x, weights, mask, scales)

        if not within_shard_map:
            # XLA can't divide a kernel's work. Gradients of the weights are summed over the devices
            # in the type of the computation, as those of the plain blocks are.
            rows, whole = PartitionSpec(parallel.BATCH_AXES), PartitionSpec()
            on_device = jax.shard_map(
                on_device,
                mesh=mesh,
                in_specs=(rows, whole, rows, PartitionSpec(None, None, parallel.BATCH_AXES)),
                out_specs=rows,
                check_vma=False,
            )
        return on_device(x, stacked(params, block.dtype), mask, branch_scales)

    return run


def choose_stack(
    block: Any, shape: tuple[int, ...], num_rows: int, vmem_bytes: int
) -> fused_blocks.Stack | None:
    """Return how kernels run such blocks, or None where they can't or don't fit.

    Args:
      block: what `run_blocks` takes.
      shape: of the tokens [B, S, C].
      num_rows: of a device.
      vmem_bytes: of vector memory that a kernel may take.
    """
    if not isinstance(block, TransformerBlock) or block.activation not in block_math.ACTIVATIONS:
        return None
    if block.norm_eps != LAYER_NORM_EPS:  # that of the kernels
        return None
    _, S, C = shape
    row_length = math.ceil(S / _REGISTER_ROWS) * _REGISTER_ROWS
    hidden = int(C * block.mlp_ratio)
    itemsize = jnp.dtype(block.dtype).itemsize
    if row_length > LONGEST_ROW:
        return None
    most = min(num_rows, max(TOKENS_A_PROGRAM // row_length, 1), MOST_ROWS)
    # Downwards: the more tokens in a program, the better its products fill the matrix unit.
    for rows in range(most, 0, -1):
        sizes = (rows, row_length, C, hidden, block.num_heads, itemsize)
        if num_rows % rows == 0 and needed_bytes(*sizes) <= vmem_bytes:
            kind = block_math.Block(block.num_heads, block.activation, S, row_length)
            return fused_blocks.Stack(kind, rows, vmem_bytes)
    return None


def _run(
    stack: fused_blocks.Stack, x: Array, weights: Any, mask: Array | None, scales: Array | None
) -> Array:
    """Run a stack on the rows [B, S, C] of one device; the rest as `run_stack` takes it."""
    B, S, C = x.shape
    padding = stack.block.row_length - S
    x = jnp.pad(x, ((0, 0), (0, padding), (0, 0)))  # [B, T, C]
    if mask is not None:
        mask = jnp.pad(mask, ((0, 0), (0, 0), (0, padding)))  # [B, S, T]
        # A softmax over nothing would be NaN: padding sees, but is not seen.
        mask = jnp.pad(mask, ((0, 0), (0, padding), (0, 0)), constant_values=True)
        mask = mask.astype(jnp.int8)
    if scales is not None:
        scales = jax.lax.stop_gradient(scales)  # drawn at random; the kernels give them none
    y = fused_blocks.run_stack(stack, x.reshape(-1, C), weights, mask, scales)
    return y.reshape(B, -1, C)[:, :S]


def stacked(params: Sequence[Params], dtype: Any) -> Any:
    """Return the parameters of all blocks as the kernels take them."""

    def stack(*leaves: Array) -> Array:
        # A kernel's arrays have two axes. Vectors stay float32: they meet float32 values. On a TPU
        # `stack` would first copy each into a layout of its own, which takes longer than the rest.
        if leaves[0].ndim == 1:
            return jnp.concatenate(leaves).reshape(len(leaves), 1, -1)
        return jnp.stack([leaf.astype(dtype) for leaf in leaves])

    return jax.tree.map(stack, *params)


def needed_bytes(
    rows: int, row_length: int, width: int, hidden: int, num_heads: int, itemsize: int
) -> int:
    """Return the vector memory that the backward kernel takes, about.

    Args:
      rows: of a program.
      row_length: tokens of a row.
      width: channels.
      hidden: channels of the MLP.
      num_heads: of the attention.
      itemsize: bytes of a number of the computation.
    """
    # Vector memory is tiled 128 lanes wide: the last axis of a [T, T] softmax is padded to that.
    tokens, lanes = rows * row_length, math.ceil(row_length / 128) * 128
    # qkv and projection, then the MLP's two; beside them vectors are negligible.
    matrices = 4 * width * width + 2 * width * hidden
    # Weights, their gradients, and the sums of these in float32.
    weights = matrices * (2 * itemsize + 4)
    # Input and two gradients, each of this program and of the one before or after.
    windows = 6 * tokens * width * itemsize
    softmaxes = rows * num_heads * row_length * lanes * itemsize
    # Pre-activation, activation and slope; queries, keys and values, and their gradients;
    # residuals, norms and branches.
    values = tokens * (4 * 3 * hidden + (4 + 2 * itemsize) * 3 * width + 4 * 8 * width)
    return weights + windows + softmaxes + values
