"""The text encoder: a causal transformer as in CLIP (arXiv 2103.00020)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from groupvit_jax.models.blocks import Execution, run_blocks
from groupvit_jax.models.layers import TransformerBlock, layer_norm, quick_gelu
from groupvit_jax.typing import Array, Bool, Float, Int


class TextEncoder(nn.Module):
    """Causal transformer whose feature is taken at the end-of-text token.

    A row of tokens holds one text or several behind each other, each closed by its end-of-text
    token. A token sees those before it in its own text, and positions count within the text, so a
    text's feature is the same wherever it stands.

    Attributes:
      vocab_size: number of token ids.
      context_length: longest text, in tokens.
      width: channels.
      num_layers: transformer blocks.
      num_heads: of every attention.
      mlp_ratio: hidden channels of the MLPs over `width`.
      end_of_text_id: the last token of every text.
      execution: how the blocks are computed.
      dtype: of the computation; parameters are float32.
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
          tokens: rows of texts, none longer than `context_length`; what follows the last has no
            influence.
          ends: where in its row each text has its end-of-text token; a place may be named several
            times. None: a row is one text, which ends at the first such token (N = 1).
          places: of tokens in every row.

        Returns:
          The features of the texts, and behind them those of the tokens at `places`.

        Raises:
          ValueError: if rows of one text are longer than `context_length`.
        """
        if ends is None:
            ends = end_of_only_text(tokens, self.end_of_text_id, self.context_length)
        if places is not None:
            ends = jnp.concatenate([ends, jnp.tile(places, (len(tokens), 1))], axis=1)
        starts, mask = separate_texts(tokens, self.end_of_text_id)
        # Padding behind the texts may be longer than any of them.
        place = jnp.minimum(jnp.arange(tokens.shape[1]) - starts, self.context_length - 1)
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
        x = embed(tokens) + positions[place].astype(self.dtype)
        deep = self.width**-0.5 * (2 * self.num_layers) ** -0.5
        block = TransformerBlock(
            self.num_heads,
            self.mlp_ratio,
            activation=quick_gelu,
            qkv_init=normal(self.width**-0.5),
            proj_init=normal(deep),
            fc1_init=normal((2 * self.width) ** -0.5),
            fc2_init=normal(deep),
            dtype=self.dtype,
            parent=None,
        )
        x = run_blocks(self, block, self.num_layers, x, mask, execution=self.execution)
        # Normalising one token a text instead of all is the same and cheaper.
        x = jnp.take_along_axis(x, ends[:, :, None], axis=1)
        return layer_norm(self.dtype, "norm")(x).astype(jnp.float32)


def end_of_only_text(
    tokens: Int[Array, "B T"], end_of_text_id: int, context_length: int
) -> Int[Array, "B 1"]:
    """Return where the text of each row ends: at the first end-of-text token.

    Raises:
      ValueError: the rows are longer than a text may be.
    """
    if context_length < (T := tokens.shape[1]):
        raise ValueError(f"text: {T} tokens, expected at most {context_length}")
    return (tokens == end_of_text_id).argmax(axis=1)[:, None]


def separate_texts(
    tokens: Int[Array, "B L"], end_of_text_id: int
) -> tuple[Int[Array, "B L"], Bool[Array, "B L L"]]:
    """Return where the text of each token begins, and which tokens each token sees.

    A token sees itself and those before it in its own text.
    """
    L = tokens.shape[1]
    query, key = jnp.arange(L)[:, None], jnp.arange(L)
    is_end = tokens[:, :-1] == end_of_text_id
    after_end = jnp.pad(jnp.where(is_end, key[1:], 0), ((0, 0), (1, 0)))
    starts = jax.lax.cummax(after_end, axis=1)
    return starts, (starts[:, :, None] <= key) & (key <= query)
