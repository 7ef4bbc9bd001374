"""The text encoder: a causal transformer as in CLIP (arXiv 2103.00020)."""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype

from groupvit_jax.models.layers import TransformerBlock, layer_norm, quick_gelu
from groupvit_jax.typing import Array, Float, Int


class TextEncoder(nn.Module):
    """Causal transformer whose feature is taken at the end-of-text token.

    Attributes:
      vocab_size: number of token ids.
      context_length: longest text, in tokens.
      width: channels.
      num_layers: transformer blocks.
      num_heads: of every attention.
      end_of_text_id: the token at whose first occurrence the feature is taken.
      dtype: of the computation; parameters are float32.
    """

    vocab_size: int = 49408
    context_length: int = 77
    width: int = 256
    num_layers: int = 12
    num_heads: int = 4
    end_of_text_id: int = 49407
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B C"]:
        """Encodes texts; what follows the end-of-text token has no influence.

        Raises:
          ValueError: if the texts are longer than `context_length`.
        """
        T = tokens.shape[1]
        if self.context_length < T:
            raise ValueError(f"text: {T} tokens, expected at most {self.context_length}")
        normal = nn.initializers.normal
        embed = nn.Embed(
            self.vocab_size,
            self.width,
            embedding_init=normal(0.02),
            dtype=self.dtype,
            name="token_embedding",
        )
        shape = (self.context_length, self.width)
        positions = self.param("position_embedding", normal(0.01), shape)
        x = embed(tokens) + positions[:T].astype(self.dtype)
        deep = self.width**-0.5 * (2 * self.num_layers) ** -0.5
        for i in range(self.num_layers):
            x = TransformerBlock(
                self.num_heads,
                causal=True,
                activation=quick_gelu,
                qkv_init=normal(self.width**-0.5),
                proj_init=normal(deep),
                fc1_init=normal((2 * self.width) ** -0.5),
                fc2_init=normal(deep),
                dtype=self.dtype,
                name=f"blocks_{i}",
            )(x)
        # Normalising one token a text instead of all is the same and cheaper.
        end = (tokens == self.end_of_text_id).argmax(axis=1)
        x = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        return layer_norm(self.dtype, "norm")(x).astype(jnp.float32)
