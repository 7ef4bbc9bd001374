"""The text encoder: a causal transformer as in CLIP (arXiv 2103.00020)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from groupvit_jax.models.activations import quick_gelu
from groupvit_jax.models.blocks import Execution, run_blocks
from groupvit_jax.models.layers import TransformerBlock, layer_norm
from groupvit_jax.models.token_embedding import TokenEmbedding
from groupvit_jax.typing import Array, Bool, Float, Int


class TextEncoder(nn.Module):
    """Causal transformer whose feature is taken at the end-of-text token.

    A row of tokens holds one or several texts, each closed by an end-of-text token. Tokens attend
    to earlier tokens of their own text, and positions count from its start, so the feature of a
    text does not depend on its place in the row.

    Attributes:
      vocab_size: number of token ids.
      context_length: longest text, in tokens.
      width: channels.
      num_layers: number of transformer blocks.
      num_heads: attention heads of a block.
      mlp_ratio: hidden channels of an MLP over `width`.
      end_of_text_id: the last token of every text.
      execution: how the blocks are computed.
      dtype: type of the computation; parameters are float32.
    """

    vocab_size: int = 49408
    context_length: int = 77
    width: int = 256
    num_layers: int = 12
    num_heads: int = 4
    mlp_ratio: float = 4.0
    end_of_text_id: int = 49407
    execution: Execution = Execution()
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B L"],
        ends: Int[Array, "B N"] | None = None,
        places: Int[Array, "W"] | None = None,
    ) -> Float[Array, "B M C"]:
        """Encode texts.

        Args:
          tokens: rows of texts, none longer than `context_length`; padding after the last text has
            no influence.
          ends: position of each text's end-of-text token in its row; positions may repeat. None: a
            row is one text, which ends at the first such token (N = 1).
          places: positions of further tokens whose features are returned, the same in every row.

        Returns:
          The features of the texts, followed by those of the tokens at `places`.

        Raises:
          ValueError: if rows of one text are longer than `context_length`.
        """
        if ends is None:
            ends = end_of_only_text(tokens, self.end_of_text_id, self.context_length)
        if places is not None:
            ends = jnp.concatenate([ends, jnp.tile(places, (len(tokens), 1))], axis=1)
        starts, mask = separate_texts(tokens, self.end_of_text_id)
        # Clipped, because the padding counts as one more text and may be longer than any.
        place = jnp.minimum(jnp.arange(tokens.shape[1]) - starts, self.context_length - 1)
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
        x = embed(tokens) + positions[place].astype(self.dtype)
        # As in CLIP: 2 x layers branches add up, so each one's last matrix starts smaller.
        deep = self.width**-0.5 * (2 * self.num_layers) ** -0.5
        block = TransformerBlock(
            self.num_heads,
            self.mlp_ratio,
            activation=quick_gelu,
            qkv_init=normal(self.width**-0.5),
            proj_init=normal(deep),
            fc1_init=normal((2 * self.width) ** -0.5),
            fc2_init=normal(deep),
            uniform_biases=True,
            dtype=self.dtype,
            parent=None,
        )
        x = run_blocks(self, block, self.num_layers, x, mask, execution=self.execution)
        # LayerNorm works token by token, so it is enough to normalise the ones selected.
        x = jnp.take_along_axis(x, ends[:, :, None], axis=1)  # [B, L, C] -> [B, M, C]
        return layer_norm(self.dtype, "norm")(x).astype(jnp.float32)


def end_of_only_text(
    tokens: Int[Array, "B T"], end_of_text_id: int, context_length: int
) -> Int[Array, "B 1"]:
    """Return the position of the first end-of-text token of each row.

    Raises:
      ValueError: the rows are longer than a text may be.
    """
    if context_length < (T := tokens.shape[1]):
        raise ValueError(f"text: {T} tokens, expected at most {context_length}")
    return (tokens == end_of_text_id).argmax(axis=1)[:, None]


def separate_texts(
    tokens: Int[Array, "B L"], end_of_text_id: int
) -> tuple[Int[Array, "B L"], Bool[Array, "B L L"]]:
    """Return the start of each token's text and the attention mask, causal within each text."""
    L = tokens.shape[1]
    query, key = jnp.arange(L)[:, None], jnp.arange(L)
    # Without the last position, behind which no text can begin.
    is_end = tokens[:, :-1] == end_of_text_id
    after_end = jnp.pad(jnp.where(is_end, key[1:], 0), ((0, 0), (1, 0)))
    # A token's text begins behind the last end before it: the running maximum of those places.
    starts = jax.lax.cummax(after_end, axis=1)
    return starts, (starts[:, :, None] <= key) & (key <= query)
