"""Attention in one kernel: the weights of all pairs of tokens are never written to memory."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import flash_attention as pallas

from groupvit_jax.models.layers import AttentionFn, attend
from groupvit_jax.typing import Array, Float

# Of fewer tokens a kernel would mostly compute padding, and the weights are small.
LEAST_TOKENS = 256
_LANES = 128  # the kernel's blocks are multiples of them
_LARGEST_BLOCK = 512


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
    names = {field.name for field in dataclasses.fields(pallas.BlockSizes)} - {"block_b"}
    sizes = pallas.BlockSizes(block_b=1, **dict.fromkeys(names, block))
    out = pallas.flash_attention(
        query, key, value, segment_ids=segments, sm_scale=H**-0.5, block_sizes=sizes
    )
    return out[:, :, :T]


def attend_on_gpu(
    query: Float[Array, "B N T H"], key: Float[Array, "B N T H"], value: Float[Array, "B N T H"]
) -> Float[Array, "B N T H"]:
    """Compute `layers.attend` by cuDNN, in float16 or bfloat16; that of few tokens by XLA."""
    if query.shape[2] < LEAST_TOKENS:
        return attend(query, key, value)
    tokens_first = (x.swapaxes(1, 2) for x in (query, key, value))
    return jax.nn.dot_product_attention(*tokens_first, implementation="cudnn").swapaxes(1, 2)


KERNELS: dict[str, AttentionFn] = {"tpu": attend_on_tpu, "gpu": attend_on_gpu}
