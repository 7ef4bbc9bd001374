"""Layers of both towers: MLPs, attention, stochastic depth, BatchNorm."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from groupvit_jax.models.activations import gelu
from groupvit_jax.typing import Array, Bool, Float, Int, Key

LAYER_NORM_EPS = 1e-5
# Unmasked attention of queries on keys and values, all [B, N, T, H].
AttentionFn = Callable[[Array, Array, Array], Array]

# PyTorch's default for linear and convolutional weights: uniform within ±fan_in^-0.5.
fan_in_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def uniform_bias(fan_in: int) -> Initializer:
    """Return PyTorch's default of a bias: uniform within ±fan_in^-0.5.

    The published model leaves it to some layers, in none of which it sets the bias itself.
    """
    limit = fan_in**-0.5

    def init(key: Key[Array, ""], shape: Sequence[int], dtype: Dtype = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


# The published model is initialised by PyTorch's trunc_normal_, which truncates at ±2 and not at
# two standard deviations: at 0.02 nothing is cut off, and a plain normal is the same.
vit_init = nn.initializers.normal(0.02)


def layer_norm(dtype: Dtype, name: str, epsilon: float = LAYER_NORM_EPS) -> nn.LayerNorm:
    """Return the LayerNorm of the published models; its statistics are computed in float32."""
    # E[x²] - E[x]², the fast variance, cancels: too few digits are left for parity with PyTorch.
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name)


@jax.custom_vjp
def linear(x: Float[Array, "*B C"], kernel: Float[Array, "C O"]) -> Float[Array, "*B O"]:
    """Return `x @ kernel`, with a gradient rule that avoids a transposed copy.

    JAX's own rule computes the kernel's gradient transposed, from a transposed copy of the output's
    gradient. XLA's CPU compiler fuses that copy with the additions that make up the gradient, and
    so recomputes them through all later blocks.
    """
    return x @ kernel


def _linear_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _linear_backward(inputs: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = inputs
    # One matrix product over all leading axes: [C, rows] @ [rows, O].
    rows, gradient_rows = (y.reshape(-1, y.shape[-1]) for y in (x, gradient))
    return gradient @ kernel.T, rows.T @ gradient_rows


linear.defvjp(_linear_forward, _linear_backward)


def dense(
    features: int,
    init: Initializer,
    dtype: Dtype,
    name: str,
    bias_init: Initializer = nn.initializers.zeros,
) -> nn.Dense:
    """Return a linear layer with a bias, over the last axis."""
    return nn.Dense(
        features,
        kernel_init=init,
        bias_init=bias_init,
        dtype=dtype,
        dot_general=_dot,
        name=name,
    )


def _dot(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
    # Flax hands over dimension numbers and a precision; for a Dense they mean `x @ kernel`.
    return linear(x, kernel)


class Mlp(nn.Module):
    """Two linear layers with an activation in between, over the last axis.

    Attributes:
      hidden_dim: width between the layers.
      out_dim: channels of the result.
      activation: function between the layers.
      fc1_init: initialiser of the first layer's weights.
      fc2_init: initialiser of the second layer's weights.
      dtype: dtype of the computation.
      uniform_biases: biases start as `uniform_bias`, not at zero.
    """

    hidden_dim: int
    out_dim: int
    activation: Callable[[Array], Array] = gelu
    fc1_init: Initializer = vit_init
    fc2_init: Initializer = vit_init
    dtype: Dtype = jnp.float32
    uniform_biases: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*B O"]:
        """Map the channels."""

        def linear_layer(dim: int, init: Initializer, name: str, fan_in: int) -> nn.Dense:
            bias = uniform_bias(fan_in) if self.uniform_biases else nn.initializers.zeros
            return dense(dim, init, self.dtype, name, bias)

        x = linear_layer(self.hidden_dim, self.fc1_init, "fc1", x.shape[-1])(x)
        x = self.activation(x)
        return linear_layer(self.out_dim, self.fc2_init, "fc2", self.hidden_dim)(x)


class TokenMlp(nn.Module):
    """An `Mlp` over the token axis, as in MLP-Mixer."""

    hidden_dim: int
    num_out_tokens: int
    kernel_init: Initializer = vit_init
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B G C"]) -> Float[Array, "B O C"]:
        """Map `G` tokens to `num_out_tokens`."""
        mlp = Mlp(
            self.hidden_dim,
            self.num_out_tokens,
            fc1_init=self.kernel_init,
            fc2_init=self.kernel_init,
            dtype=self.dtype,
        )
        # The parameters lie right under this module, where published weights have them.
        nn.share_scope(self, mlp)
        return mlp(x.swapaxes(1, 2)).swapaxes(1, 2)  # [B, C, G] -> [B, C, O] -> [B, O, C]


def attend(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B N S H"],
    value: Float[Array, "B N S H"],
    mask: Bool[Array, "#B #N T S"] | None = None,
    *,
    normalize_first: bool = False,
) -> Float[Array, "B N T H"]:
    """Compute multi-head attention, with logits and softmax in float32.

    Args:
      query: heads before tokens.
      key: like the queries.
      value: like the queries.
      mask: mask of the visible tokens, at least one for every query; None if all are visible.
      normalize_first: whether the softmax is normalised before its product with the values. After
        it, `T x H` numbers are divided in place of `T x S`, which is faster on a CPU. On a TPU the
        division is free beside the exponential, and normalised weights need fewer passes backward.
    """
    scaled = query * query.shape[-1] ** -0.5  # before the product: T x H numbers, not T x S
    logits = jnp.einsum("bnth,bnsh->bnts", scaled, key, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    if normalize_first:
        weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
        return jnp.einsum("bnts,bnsh->bnth", weights, value)  # [B, N, T, S] -> [B, N, T, H]
    # The softmax doesn't depend on the maximum, so no gradient has to go through it.
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    total = jnp.einsum(
        "bnts,bnsh->bnth", weights.astype(value.dtype), value, preferred_element_type=jnp.float32
    )
    return (total / weights.sum(axis=-1, keepdims=True)).astype(value.dtype)


def _join_heads(x: Float[Array, "B N T H"]) -> Float[Array, "B T C"]:
    B, N, T, H = x.shape
    return x.swapaxes(1, 2).reshape(B, T, N * H)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection for queries, keys and values."""

    num_heads: int
    qkv_init: Initializer = vit_init
    proj_init: Initializer = vit_init
    dtype: Dtype = jnp.float32
    attention_fn: AttentionFn = attend

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S C"], mask: Bool[Array, "B S S"] | None = None
    ) -> Float[Array, "B S C"]:
        """Attend among the tokens of each row; the softmax is computed in float32.

        Args:
          x: the tokens.
          mask: [b, i, j] is True if token i sees token j. None: all are visible, and
            `attention_fn` computes the attention.
        """
        B, S, C = x.shape
        qkv = dense(3 * C, self.qkv_init, self.dtype, "qkv")(x)  # [B, S, 3 C]
        # The gradient of a split is a concatenation; that of a transposition to [3, ...], as in
        # PyTorch implementations, would be another transposition.
        q, k, v = (
            # [B, S, C] -> [B, S, N, H] -> [B, N, S, H]
            y.reshape(B, S, self.num_heads, C // self.num_heads).swapaxes(1, 2)
            for y in jnp.split(qkv, 3, axis=-1)
        )
        # The mask gets an axis of size 1: all heads share it.
        out = self.attention_fn(q, k, v) if mask is None else attend(q, k, v, mask[:, None])
        return dense(C, self.proj_init, self.dtype, "proj")(_join_heads(out))


class CrossAttention(nn.Module):
    """Multi-head attention of queries on other tokens."""

    num_heads: int
    kernel_init: Initializer = vit_init
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, query: Float[Array, "B G C"], context: Float[Array, "B S C"]
    ) -> Float[Array, "B G C"]:
        """Attend from `query` to `context`; the softmax is computed in float32."""

        def heads(x: Array, name: str) -> Array:
            x = dense(C, self.kernel_init, self.dtype, name)(x)
            # [B, T, C] -> [B, N, T, H]
            return x.reshape(*x.shape[:2], self.num_heads, C // self.num_heads).swapaxes(1, 2)

        C = query.shape[-1]
        q, k, v = heads(query, "q_proj"), heads(context, "k_proj"), heads(context, "v_proj")
        out = _join_heads(attend(q, k, v))
        return dense(C, self.kernel_init, self.dtype, "proj")(out)


def example_keys(key: Key[Array, ""], noise_ids: Int[Array, "B"]) -> Key[Array, "B"]:
    """Return a key for each example, whose noise then doesn't depend on sharding or micro-batches.

    Args:
      key: key of the step and the kind of noise.
      noise_ids: positions of the examples in the step's global batch.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, noise_ids)


def draw_branch_scales(keys: Key[Array, "B"], rates: Sequence[float]) -> Float[Array, "D 2 B"]:
    """Draw stochastic depth (arXiv 1603.09382) for both branches of each block, per image.

    Args:
      keys: keys of the images, from `example_keys`.
      rates: for each block, the probability that a branch is dropped.

    Returns:
      Factors of the branches: 0 if dropped, else `1 / (1 - rate)`.
    """
    keep = 1.0 - jnp.array(rates, jnp.float32)[:, None]  # [D, 1]: both branches of a block alike

    def draw(key: Key[Array, ""]) -> Float[Array, "D 2"]:
        return jax.random.bernoulli(key, keep, (len(rates), 2)) / keep

    return jax.vmap(draw, out_axes=-1)(keys)


class TransformerBlock(nn.Module):
    """Pre-norm transformer block; for `uniform_biases` of its MLP see `Mlp`."""

    num_heads: int
    mlp_ratio: float = 4.0
    activation: Callable[[Array], Array] = gelu
    qkv_init: Initializer = vit_init
    proj_init: Initializer = vit_init
    fc1_init: Initializer = vit_init
    fc2_init: Initializer = vit_init
    dtype: Dtype = jnp.float32
    attention_fn: AttentionFn = attend
    uniform_biases: bool = False
    norm_eps: float = LAYER_NORM_EPS

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S C"],
        mask: Bool[Array, "B S S"] | None = None,
        branch_scales: Float[Array, "2 B"] | None = None,
    ) -> Float[Array, "B S C"]:
        """Apply attention, then the MLP, each with a residual connection.

        Args:
          x: the tokens.
          mask: see `SelfAttention`.
          branch_scales: factors of each image's attention and MLP branch; None for 1.
        """

        def scaled(branch: int, y: Array) -> Array:
            if branch_scales is None:
                return y
            # The factors are float32 and would promote bfloat16 tokens from here on.
            return (y * branch_scales[branch][:, None, None]).astype(y.dtype)

        C = x.shape[-1]
        attention = SelfAttention(
            self.num_heads,
            self.qkv_init,
            self.proj_init,
            self.dtype,
            self.attention_fn,
            name="attn",
        )
        mlp = Mlp(
            int(C * self.mlp_ratio),
            C,
            self.activation,
            self.fc1_init,
            self.fc2_init,
            self.dtype,
            self.uniform_biases,
            name="mlp",
        )
        x = x + scaled(0, attention(layer_norm(self.dtype, "norm1", self.norm_eps)(x), mask))
        return x + scaled(1, mlp(layer_norm(self.dtype, "norm2", self.norm_eps)(x)))


class BatchNorm(nn.Module):
    """BatchNorm over the global batch, with PyTorch's running statistics.

    Flax's own keeps the biased variance, PyTorch, and so the published weights, the unbiased one.
    Under `jit` the batch axis is global, so the statistics are those of the global batch on any
    mesh.
    """

    momentum: float = 0.1  # the weight of the new value, PyTorch's sense
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B C"],
        *,
        train: bool,
        statistics_of: Float[Array, "S C"] | None = None,
    ) -> Float[Array, "B C"]:
        """Normalise in float32 and return float32; update `batch_stats` in training.

        Args:
          x: the features.
          train: use the batch's statistics instead of the running ones.
          statistics_of: another batch whose statistics are used; the running ones are not updated.
        """
        x = x.astype(jnp.float32)
        batch = x if statistics_of is None else statistics_of.astype(jnp.float32)
        B, C = batch.shape
        scale = self.param("scale", nn.initializers.ones, (C,))
        bias = self.param("bias", nn.initializers.zeros, (C,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (C,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (C,))
        if train:
            mean, var = batch.mean(0), batch.var(0)
            if statistics_of is None and not self.is_initializing():
                unbiased = var * (B / max(B - 1, 1))
                running_mean.value += self.momentum * (mean - running_mean.value)
                running_var.value += self.momentum * (unbiased - running_var.value)
        else:
            mean, var = running_mean.value, running_var.value
        return (x - mean) * jax.lax.rsqrt(var + self.epsilon) * scale + bias
