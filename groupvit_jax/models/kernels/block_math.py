"""The arithmetic of a pre-norm transformer block, forward and backward, on values in vector memory.

A program of the kernels in `fused_blocks` holds `R` rows (images, or rows of packed texts) of `T`
tokens each, one below the other: [R * T, C]. Linear layers, norms and activations see one tall
matrix; only attention goes row by row and head by head.

Statistics, logits, softmax, residuals and everything between two products are float32; operands of
products have the type of the weights, and the matrix unit adds up in float32. The plain code rounds
to that type after each operation as well, so in bfloat16 the kernels are the more exact of the two.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from groupvit_jax.models import activations, layers
from groupvit_jax.typing import Array

Weights = Any  # a TransformerBlock's parameters, or their gradients: a tree of arrays or refs
F32 = jnp.float32


@dataclasses.dataclass(frozen=True)
class Block:
    """The shape of a block and of the rows it works on.

    Attributes:
      num_heads: of the attention.
      activation: of the MLP, one of `ACTIVATIONS`.
      num_tokens: of a row, padding excluded.
      row_length: tokens of a row with padding, a multiple of 8 (the height of a register), so that
        a row begins at a register's edge and cutting rows apart is free.
    """

    num_heads: int
    activation: Callable[[Array], Array]
    num_tokens: int
    row_length: int


class Branches(NamedTuple):
    """Factors of stochastic depth for the rows of a program, one scalar a row.

    Attributes:
      attention: of the attention branch.
      mlp: of the MLP branch.
    """

    attention: Sequence[Array]
    mlp: Sequence[Array]


def gelu(x: Array) -> tuple[Array, Array]:
    """Return exact GELU and its derivative."""
    cdf = 0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5)
    # d/dx (x Phi(x)) = Phi(x) + x phi(x), with the normal distribution's Phi and its density phi.
    return x * cdf, cdf + x * jnp.exp(-0.5 * x * x) * (2 * jnp.pi) ** -0.5


def quick_gelu(x: Array) -> tuple[Array, Array]:
    """Return CLIP's GELU, `x sigmoid(1.702 x)`, and its derivative."""
    # Where exp overflows, 1 / inf is 0, the gate's limit.
    gate = 1 / (1 + jnp.exp(-1.702 * x))
    # d/dx (x s(a x)) = s + a x s (1 - s), with a = 1.702.
    return x * gate, gate * (1 + 1.702 * x * (1 - gate))


# Activation of the plain code -> value and derivative of a float32 array.
ACTIVATIONS: dict[Callable[[Array], Array], Callable[[Array], tuple[Array, Array]]] = {
    activations.gelu: gelu,
    activations.quick_gelu: quick_gelu,
}


def forward(
    block: Block, x: Array, weights: Weights, mask: Sequence[Array] | None, scales: Branches | None
) -> Array:
    """Return the block's output [R * T, C] in float32.

    Args:
      block: its shape.
      x: the input [R * T, C].
      weights: of the block, `TransformerBlock`'s tree; vectors are [1, C].
      mask: of each row, [T, T]: whether a token (first axis) sees another; None: all see all.
      scales: of the branches; None for 1.
    """
    x = x.astype(F32)
    dtype = _dtype_of(weights)
    y = _affine(_normalize(x)[0], weights["norm1"]).astype(dtype)
    qkv = _scaled_queries(_linear(y, weights["attn"]["qkv"]), block).astype(dtype)  # [R * T, 3 C]
    attended, _ = _attend(block, qkv, mask, keep=False)  # [R * T, C]
    x = x + _by_row(_linear(attended, weights["attn"]["proj"]), scales and scales.attention)
    y = _affine(_normalize(x)[0], weights["norm2"]).astype(dtype)
    hidden, _ = ACTIVATIONS[block.activation](_linear(y, weights["mlp"]["fc1"]))
    out = _linear(hidden.astype(dtype), weights["mlp"]["fc2"])
    return x + _by_row(out, scales and scales.mlp)


def backward(
    block: Block,
    x: Array,
    gradient: Array,
    weights: Weights,
    gradients: Weights,
    mask: Sequence[Array] | None,
    scales: Branches | None,
) -> Array:
    """Return the gradient of the input, float32, and adds up those of the weights.

    The block is computed anew from its input: its intermediate values are 13 times as large as
    `x`, and to write and read them takes a v5e longer than its matrix unit needs for the products
    of a forward pass. The softmax's weights stay in vector memory between the two halves.

    Args:
      block: its shape.
      x: the block's input [R * T, C].
      gradient: of the block's output; zero where tokens are padding.
      weights: as `forward` takes them.
      gradients: refs like the weights in float32, to which this program's share is added.
      mask: as `forward` takes it.
      scales: likewise; their own gradient is not computed.
    """
    x, gradient = x.astype(F32), gradient.astype(F32)
    dtype = _dtype_of(weights)
    attention, mlp = weights["attn"], weights["mlp"]
    # Forward.
    norm1, inverse1 = _normalize(x)
    y1 = _affine(norm1, weights["norm1"]).astype(dtype)
    qkv = _scaled_queries(_linear(y1, attention["qkv"]), block).astype(dtype)  # [R * T, 3 C]
    attended, kept = _attend(block, qkv, mask, keep=True)  # [R * T, C], R x N x [T, T]
    middle = x + _by_row(_linear(attended, attention["proj"]), scales and scales.attention)
    norm2, inverse2 = _normalize(middle)  # [R * T, C], [R * T, 1]
    y2 = _affine(norm2, weights["norm2"]).astype(dtype)
    hidden, slope = ACTIVATIONS[block.activation](_linear(y2, mlp["fc1"]))
    # Backward through the MLP.
    d_out = _by_row(gradient, scales and scales.mlp).astype(dtype)
    _add(gradients["mlp"]["fc2"], hidden.astype(dtype), d_out)
    # Contracting second axes multiplies by the transposed kernel without transposing it.
    d_hidden = (_dot(d_out, mlp["fc2"]["kernel"][...], 1, 1) * slope).astype(dtype)
    _add(gradients["mlp"]["fc1"], y2, d_hidden)
    d_y2 = _dot(d_hidden, mlp["fc1"]["kernel"][...], 1, 1)
    d_middle = gradient + _normalize_backward(
        norm2, inverse2, d_y2, weights["norm2"], gradients["norm2"]
    )
    # Backward through the attention.
    d_branch = _by_row(d_middle, scales and scales.attention).astype(dtype)
    _add(gradients["attn"]["proj"], attended, d_branch)
    d_attended = _dot(d_branch, attention["proj"]["kernel"][...], 1, 1)
    d_qkv = _attend_backward(block, qkv, attended, kept, d_attended, dtype)  # [R * T, 3 C]
    _add(gradients["attn"]["qkv"], y1, d_qkv)
    d_y1 = _dot(d_qkv, attention["qkv"]["kernel"][...], 1, 1)
    return d_middle + _normalize_backward(
        norm1, inverse1, d_y1, weights["norm1"], gradients["norm1"]
    )


def _dot(a: Array, b: Array, axis_a: int = 1, axis_b: int = 0) -> Array:
    """Product over one axis of each, in float32."""
    return jax.lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((), ())), preferred_element_type=F32)


def _dtype_of(weights: Weights) -> Any:
    return weights["mlp"]["fc1"]["kernel"].dtype


def _linear(x: Array, layer: Weights) -> Array:
    return _dot(x, layer["kernel"][...]) + layer["bias"][...]


def _add(gradients: Weights, x: Array, d_y: Array) -> None:
    """Add a linear layer's gradients, given its input and its output's gradient."""
    gradients["kernel"][...] += _dot(x, d_y, 0, 0)  # over all tokens: [C, O]
    gradients["bias"][...] += d_y.astype(F32).sum(axis=0, keepdims=True)  # [1, O]


def _normalize(x: Array) -> tuple[Array, Array]:
    """Return the normalised rows, and the inverses of their standard deviations."""
    # In two passes, like the plain code: E[x²] - E[x]² would cancel.
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(variance + layers.LAYER_NORM_EPS)
    return centred * inverse, inverse


def _affine(normalized: Array, norm: Weights) -> Array:
    return normalized * norm["scale"][...] + norm["bias"][...]


def _normalize_backward(
    normalized: Array, inverse: Array, d_y: Array, norm: Weights, gradients: Weights
) -> Array:
    """Return the gradient of a LayerNorm's input, and adds those of its scale and bias."""
    gradients["scale"][...] += (d_y * normalized).sum(axis=0, keepdims=True)
    gradients["bias"][...] += d_y.sum(axis=0, keepdims=True)
    d_n = d_y * norm["scale"][...]
    # A normalised row doesn't change with the shift and the scale of its input: what the gradient
    # has along these two directions is taken out.
    along = (d_n * normalized).mean(axis=-1, keepdims=True)
    return inverse * (d_n - d_n.mean(axis=-1, keepdims=True) - normalized * along)


def _by_row(x: Array, factors: Sequence[Array] | None) -> Array:
    """Multiply each row's tokens with its factor."""
    if factors is None:
        return x
    length = x.shape[0] // len(factors)
    rows = [x[r * length : (r + 1) * length] * factor for r, factor in enumerate(factors)]
    return jnp.concatenate(rows, axis=0)


def _scaled_queries(qkv: Array, block: Block) -> Array:
    """Scale the queries, as long as they are float32: they are fewer than the logits."""
    width = qkv.shape[1] // 3
    scale = (width // block.num_heads) ** -0.5
    return jnp.concatenate([qkv[:, :width] * scale, qkv[:, width:]], axis=1)


def _heads(block: Block, x: Array, row: int, head: int, parts: int) -> list[Array]:
    """Return what belongs to a row and a head of [R * T, parts * C]: `parts` times [T, H]."""
    T, width = block.row_length, x.shape[1] // parts
    H = width // block.num_heads
    return [
        x[row * T : (row + 1) * T, part * width + head * H : part * width + (head + 1) * H]
        for part in range(parts)
    ]


def _joined(block: Block, pieces: Sequence[Sequence[Array]]) -> Array:
    """Put the pieces of rows (outer) and columns (inner) together again."""
    return jnp.concatenate([jnp.concatenate(row, axis=1) for row in pieces], axis=0)


def _visible(block: Block, mask: Array | None) -> Array | None:
    """Return which keys the queries of a row see, or None if all see all; padding is not seen."""
    T = block.row_length
    if block.num_tokens == T:
        return mask
    # Axis 1 are the keys: a padded query may look, its output is cut off afterwards.
    real = jax.lax.broadcasted_iota(jnp.int32, (T, T), 1) < block.num_tokens
    return real if mask is None else real & mask


def _attend(
    block: Block, qkv: Array, mask: Sequence[Array] | None, *, keep: bool
) -> tuple[Array, list[list[Array]]]:
    """Return the attention's output [R * T, C], and with `keep` the softmaxes by row and head."""
    pieces: list[list[Array]] = []
    kept: list[list[Array]] = []
    # Python loops, unrolled into the kernel: while one head's softmax runs on the vector unit, the
    # matrix unit can work at the next head's products.
    for row in range(qkv.shape[0] // block.row_length):
        visible = _visible(block, None if mask is None else mask[row])
        pieces.append([])
        kept.append([])
        for head in range(block.num_heads):
            query, key, value = _heads(block, qkv, row, head, 3)
            logits = _dot(query, key, 1, 1)  # [T, H] x [T, H] -> [T, T]
            if visible is not None:
                logits = jnp.where(visible, logits, -jnp.inf)
            # Every query sees a key, padding's queries too, so the maximum is finite.
            weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
            inverse = 1 / weights.sum(axis=-1, keepdims=True)  # [T, 1]
            if keep:  # the backward pass needs them normalised
                weights = (weights * inverse).astype(qkv.dtype)
                kept[-1].append(weights)
                out = _dot(weights, value)
            else:  # cheaper than to normalise all T x T
                out = _dot(weights.astype(qkv.dtype), value) * inverse
            pieces[-1].append(out.astype(qkv.dtype))
    return _joined(block, pieces), kept


def _attend_backward(
    block: Block,
    qkv: Array,
    attended: Array,
    kept: Sequence[Sequence[Array]],
    d_attended: Array,
    dtype: Any,
) -> Array:
    """Return the gradient of queries (before scaling), keys and values, [R * T, 3 C]."""
    scale = (qkv.shape[1] // 3 // block.num_heads) ** -0.5
    # The softmax's gradient needs sum_j p_ij dp_ij = o_i . do_i: one product of [T, H] a head
    # instead of [T, T] (FlashAttention, arXiv 2205.14135, appendix B.2).
    inner = attended.astype(F32) * d_attended
    d_attended = d_attended.astype(dtype)
    pieces = []
    for row, softmaxes in enumerate(kept):
        # Queries, keys, values: in the order of the fused projection's channels.
        columns: list[list[Array]] = [[], [], []]
        for head, softmax in enumerate(softmaxes):
            query, key, value = _heads(block, qkv, row, head, 3)
            (d_out,) = _heads(block, d_attended, row, head, 1)
            (own,) = _heads(block, inner, row, head, 1)
            d_softmax = _dot(d_out, value, 1, 1)  # [T, T]
            d_logits = softmax.astype(F32) * (d_softmax - own.sum(axis=-1, keepdims=True))
            d_logits = d_logits.astype(dtype)
            # `qkv` holds scaled queries: only the queries' gradient still lacks the factor.
            columns[0].append((_dot(d_logits, key) * scale).astype(dtype))
            columns[1].append(_dot(d_logits, query, 0, 0).astype(dtype))  # [T, H], over the queries
            columns[2].append(_dot(softmax, d_out, 0, 0).astype(dtype))
        pieces.append([piece for column in columns for piece in column])
    return _joined(block, pieces)
