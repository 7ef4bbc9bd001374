"""Token embeddings of the text towers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from groupvit_jax.typing import Array, Float, Int


class TokenEmbedding(nn.Module):
    """`flax.linen.Embed` with the same parameter, value and gradient.

    That module converts the whole table to the type of the computation and then looks rows up: 50
    MB in a step that reads 5,120 rows, 0.26 ms on a v5e. This one converts the rows.
    """

    vocab_size: int
    width: int
    embedding_init: Initializer
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L C"]:
        """Return the embeddings of tokens."""
        table = self.param("embedding", self.embedding_init, (self.vocab_size, self.width))
        return _look_up(self.dtype, table, tokens)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _look_up(
    dtype: Dtype, table: Float[Array, "V C"], tokens: Int[Array, "B L"]
) -> Float[Array, "B L C"]:
    return jnp.take(table, tokens, axis=0).astype(dtype)


def _forward(dtype: Dtype, table: Array, tokens: Array) -> tuple[Array, tuple[Array, Array]]:
    return _look_up(dtype, table, tokens), (table, tokens)


def _backward(dtype: Dtype, inputs: tuple[Array, Array], gradient: Array) -> tuple[Array, None]:
    """Add up the rows' gradients in the type of the computation, in which devices exchange them."""
    table, tokens = inputs
    # A look-up is linear in the table: only its shape and type matter here, and XLA drops the cast.
    _, transpose = jax.vjp(lambda t: jnp.take(t, tokens, axis=0), table.astype(dtype))
    return transpose(gradient)[0].astype(table.dtype), None


_look_up.defvjp(_forward, _backward)
