"""BERT as the text encoder (arXiv 1810.04805): bidirectional, post-norm, its feature at [CLS]."""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype

from groupvit_jax.models.blocks import Execution, run_blocks
from groupvit_jax.models.layers import Mlp, SelfAttention, vit_init
from groupvit_jax.models.text_encoder import end_of_only_text, separate_texts
from groupvit_jax.models.token_embedding import TokenEmbedding
from groupvit_jax.typing import Array, Bool, Float, Int

# `layer_norm_eps` of the published configurations.
BERT_NORM_EPS = 1e-12


class BertEncoder(nn.Module):
    """Bidirectional transformer whose feature is the last hidden state at a text's first token.

    Rows hold texts as in `TextEncoder`. Tokens attend to all of their own text, positions count
    from its start, and every token is of type 0. There is no pooler and no dropout.

    Attributes:
      vocab_size: number of token ids.
      context_length: longest text, in tokens.
      width: channels.
      num_layers: number of transformer blocks.
      num_heads: attention heads of a block.
      mlp_ratio: hidden channels of an MLP over `width`.
      end_of_text_id: the last token of every text, [SEP].
      execution: how the blocks are computed.
      dtype: type of the computation; parameters are float32.
    """

    vocab_size: int = 30522
    context_length: int = 77
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    end_of_text_id: int = 102
    execution: Execution = Execution()
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B L"],
        ends: Int[Array, "B N"] | None = None,
        places: Int[Array, "W"] | None = None,
    ) -> Float[Array, "B M C"]:
        """Encode texts; arguments, result and errors are those of `TextEncoder`."""
        if ends is None:
            ends = end_of_only_text(tokens, self.end_of_text_id, self.context_length)
        starts, _ = separate_texts(tokens, self.end_of_text_id)
        # The padding counts as one more text, which may be longer than any; hence the clipping.
        own_text = starts[:, :, None] == starts[:, None, :]  # [B, L, L]
        place = jnp.minimum(jnp.arange(tokens.shape[1]) - starts, self.context_length - 1)
        x = self._embed(tokens, place)
        block = BertBlock(self.num_heads, self.mlp_ratio, self.dtype, parent=None)
        x = run_blocks(self, block, self.num_layers, x, own_text, execution=self.execution)
        first = jnp.take_along_axis(starts, ends, axis=1)  # [B, N]: each text's [CLS]
        if places is not None:
            first = jnp.concatenate([first, jnp.tile(places, (len(tokens), 1))], axis=1)
        return jnp.take_along_axis(x, first[:, :, None], axis=1).astype(jnp.float32)

    def _embed(self, tokens: Int[Array, "B L"], place: Int[Array, "B L"]) -> Float[Array, "B L C"]:
        embed = TokenEmbedding(
            self.vocab_size,
            self.width,
            embedding_init=vit_init,
            dtype=self.dtype,
            name="token_embedding",
        )
        shape = (self.context_length, self.width)
        positions = self.param("position_embedding", vit_init, shape)
        token_type = self.param("token_type_embedding", vit_init, (self.width,))
        x = embed(tokens) + (positions[place] + token_type).astype(self.dtype)
        return bert_norm(self.dtype, "embedding_norm")(x)


class BertBlock(nn.Module):
    """Post-norm transformer block."""

    num_heads: int
    mlp_ratio: float = 4.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L C"], mask: Bool[Array, "B L L"]
    ) -> Float[Array, "B L C"]:
        """Add attention and then the MLP to their inputs, each sum followed by a LayerNorm."""
        C = x.shape[-1]
        attention = SelfAttention(self.num_heads, dtype=self.dtype, name="attn")
        mlp = Mlp(round(C * self.mlp_ratio), C, dtype=self.dtype, name="mlp")
        x = bert_norm(self.dtype, "norm1")(x + attention(x, mask))
        return bert_norm(self.dtype, "norm2")(x + mlp(x))


def bert_norm(dtype: Dtype, name: str) -> nn.LayerNorm:
    """LayerNorm with BERT's epsilon; statistics are computed in float32."""
    return nn.LayerNorm(epsilon=BERT_NORM_EPS, use_fast_variance=False, dtype=dtype, name=name)
