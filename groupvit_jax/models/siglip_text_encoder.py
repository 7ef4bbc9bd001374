"""SigLIP's text encoder (arXiv 2303.15343): bidirectional over padded texts."""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype

from groupvit_jax.models.activations import gelu_tanh
from groupvit_jax.models.blocks import Execution, run_blocks
from groupvit_jax.models.layers import TransformerBlock, layer_norm
from groupvit_jax.models.text_encoder import end_of_only_text, separate_texts
from groupvit_jax.models.token_embedding import TokenEmbedding
from groupvit_jax.typing import Array, Float, Int

SIGLIP_NORM_EPS = 1e-6


class SiglipTextEncoder(nn.Module):
    """Bidirectional transformer over a text and its padding, to which every token attends.

    A published SigLIP has seen all texts padded to `context_length` by the end-of-text token, and
    takes the feature of the last place. So texts can't share a row here: each is taken out of its
    row and padded, which costs `context_length` tokens a text.

    Attributes:
      vocab_size: number of token ids.
      context_length: tokens of every text, padding included.
      width: channels.
      num_layers: number of transformer blocks.
      num_heads: attention heads of a block.
      mlp_ratio: hidden channels of an MLP over `width`.
      end_of_text_id: the last token of every text, and the padding.
      execution: how the blocks are computed.
      dtype: type of the computation; parameters are float32.
    """

    vocab_size: int = 32000
    context_length: int = 64
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    end_of_text_id: int = 1
    execution: Execution = Execution()
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B L"],
        ends: Int[Array, "B N"] | None = None,
        places: Int[Array, "W"] | None = None,
    ) -> Float[Array, "B M C"]:
        """Encode texts; arguments, result and errors are those of `TextEncoder`.

        Tokens at `places` are those of the row's first text.
        """
        if ends is None:
            ends = end_of_only_text(tokens, self.end_of_text_id, self.context_length)
        texts = self._unpacked(tokens, ends)  # [B, N, T]
        B, N, T = texts.shape
        x = self._embed(texts.reshape(B * N, T))
        normal = nn.initializers.normal
        deep = self.width**-0.5 * (2 * self.num_layers) ** -0.5
        block = TransformerBlock(
            self.num_heads,
            self.mlp_ratio,
            activation=gelu_tanh,
            qkv_init=normal(self.width**-0.5),
            proj_init=normal(deep),
            fc1_init=normal((2 * self.width) ** -0.5),
            fc2_init=normal(deep),
            dtype=self.dtype,
            norm_eps=SIGLIP_NORM_EPS,
            parent=None,
        )
        x = run_blocks(self, block, self.num_layers, x, execution=self.execution)
        # [B * N, T, C] -> [B, N, T, C]
        x = x.reshape(B, N, T, self.width)
        kept = x[:, :, -1]
        if places is not None:
            kept = jnp.concatenate([kept, x[:, 0, places]], axis=1)
        kept = layer_norm(self.dtype, "norm", SIGLIP_NORM_EPS)(kept)
        head = nn.Dense(
            self.width, kernel_init=normal(self.width**-0.5), dtype=self.dtype, name="head"
        )
        return head(kept).astype(jnp.float32)

    def _unpacked(self, tokens: Int[Array, "B L"], ends: Int[Array, "B N"]) -> Int[Array, "B N T"]:
        """Return each text from its start to its end, then padding."""
        starts, _ = separate_texts(tokens, self.end_of_text_id)
        first = jnp.take_along_axis(starts, ends, axis=1)[:, :, None]
        place = first + jnp.arange(self.context_length)  # [B, N, T]
        # Places behind the row's end are clipped here and overwritten by padding below.
        inside = jnp.minimum(place, tokens.shape[1] - 1).reshape(len(tokens), -1)
        taken = jnp.take_along_axis(tokens, inside, axis=1).reshape(place.shape)
        return jnp.where(place <= ends[:, :, None], taken, self.end_of_text_id)

    def _embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T C"]:
        normal = nn.initializers.normal
        embed = TokenEmbedding(
            self.vocab_size,
            self.width,
            embedding_init=normal(0.02),
            dtype=self.dtype,
            name="token_embedding",
        )
        shape = (self.context_length, self.width)
        positions = self.param("position_embedding", normal(0.01), shape)
        return embed(tokens) + positions.astype(self.dtype)
