"""Attention in one kernel: the weights of all pairs of tokens are never written to memory."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import flash_attention as pallas
from jax.sharding import Mesh, PartitionSpec

from groupvit_jax import parallel
from groupvit_jax.models.layers import AttentionFn, attend
from groupvit_jax.typing import Array, Float

# Of fewer tokens a kernel would mostly compute padding, and the weights are small.
LEAST_TOKENS = 256
_LANES = 128  # the kernel's blocks are multiples of them
_LARGEST_BLOCK = 512
_CUDNN_DTYPES = (jnp.float16, jnp.bfloat16)
_CUDNN_MOST_CHANNELS = 128  # of a head; more only on some GPUs, and no shipped model has them


def attend_on_tpu(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B N T H"],
    value: Float[Array, "B N T H"],
) -> Float[Array, "B N T H"]:
    """Compute `layers.attend` by JAX's flash attention for TPUs; that of few tokens by XLA."""
    T, H = query.shape[2:]
    if T < LEAST_TOKENS:
        return attend(query, key, value)
    padding = -T % _LANES
    query, key, value = (
        jnp.pad(x, ((0, 0), (0, 0), (0, padding), (0, 0))) for x in (query, key, value)
    )
    segments = None
    if padding:  # padding sees padding only
        ids = (jnp.arange(T + padding) >= T).astype(jnp.int32)
        ids = jnp.broadcast_to(ids, (len(query), T + padding))
        segments = pallas.SegmentIds(q=ids, kv=ids)
    block = max(
        size for size in range(_LANES, _LARGEST_BLOCK + 1, _LANES) if (T + padding) % size == 0
    )
    # All sizes, the backward kernels' included: without these JAX's kernel has no gradient.
    names = {field.name for field in dataclasses.fields(pallas.BlockSizes)} - {"block_b"}
    sizes = pallas.BlockSizes(block_b=1, **dict.fromkeys(names, block))
    # The kernel scales by 1 unless told otherwise.
    out = pallas.flash_attention(
        query, key, value, segment_ids=segments, sm_scale=H**-0.5, block_sizes=sizes
    )
    return out[:, :, :T]


def attend_on_gpu(
    query: Float[Array, "B N T H"], key: Float[Array, "B N T H"], value: Float[Array, "B N T H"]
) -> Float[Array, "B N T H"]:
    """Compute `layers.attend` by cuDNN; that of few tokens, and what cuDNN can't, by XLA."""
    T, H = query.shape[2:]
    if T < LEAST_TOKENS or query.dtype not in _CUDNN_DTYPES or H % 8 or H > _CUDNN_MOST_CHANNELS:
        return attend(query, key, value)
    # [B, N, T, H] -> [B, T, N, H]; the default scale of JAX's function is H^-0.5, as here.
    tokens_first = (x.swapaxes(1, 2) for x in (query, key, value))
    return jax.nn.dot_product_attention(*tokens_first, implementation="cudnn").swapaxes(1, 2)


KERNELS: dict[str, AttentionFn] = {"tpu": attend_on_tpu, "gpu": attend_on_gpu}


def attention_fn(mesh: Mesh, *, within_shard_map: bool = False) -> AttentionFn | None:
    """Return the attention by the kernel of a mesh's devices; None where no kernel can.

    Args:
      mesh: the devices.
      within_shard_map: the caller is in a `jax.shard_map` over all axes of the mesh; else it is in
        a `jax.jit`.
    """
    kernel = KERNELS.get(mesh.devices.flat[0].platform)
    shards = mesh.shape["tensor"]
    if kernel is None or not within_shard_map:
        return kernel and _on_each_device(kernel, mesh)
    # Micro-batches are cut with the axis `tensor` left to XLA, which can't divide a kernel.
    return kernel if shards == 1 else None


def _on_each_device(kernel: AttentionFn, mesh: Mesh) -> AttentionFn:
    """Give each device its examples and its heads: XLA can't partition a custom kernel."""
    rows, heads = parallel.num_batch_shards(mesh), mesh.shape["tensor"]
    spec = PartitionSpec(parallel.BATCH_AXES, "tensor")
    sharded = jax.shard_map(kernel, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)

    def attend_everywhere(query: Array, key: Array, value: Array) -> Array:
        B, N = query.shape[:2]
        return (attend if B % rows or N % heads else sharded)(query, key, value)

    return attend_everywhere


def has_cudnn(device: Any) -> bool:
    """Return whether cuDNN's attention runs on the device: an NVIDIA GPU from Ampere on.

    A device that is only planned for has no compute capability, and is one of `plan/gpus`, all of
    which are such.
    """
    capability = getattr(device, "compute_capability", None)
    if device.platform != "gpu":
        return False
    if capability is None:
        return True
    # AMD's are names such as "gfx942".
    return bool(re.fullmatch(r"\d+\.\d+", capability)) and float(capability) >= 8.0
