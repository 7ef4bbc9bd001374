"""The grouping block: a straight-through (Gumbel) softmax assigns segments to groups.

Section 3.2 of the paper (arXiv 2202.11094).
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from groupvit_jax.models.activations import gelu
from groupvit_jax.models.layers import (
    CrossAttention,
    Mlp,
    TokenMlp,
    example_keys,
    layer_norm,
    vit_init,
)
from groupvit_jax.typing import Array, Float, Int, Key

ASSIGNMENTS = ("gumbel", "hard", "soft")


def straight_through_one_hot(soft: Float[Array, "B G S"]) -> Float[Array, "B G S"]:
    """Return the one-hot of the likeliest group, with the gradient of `soft` (equation 7)."""
    hard = jax.nn.one_hot(soft.argmax(axis=1), soft.shape[1], axis=1, dtype=soft.dtype)
    # Forward, both copies of `soft` cancel; backward, only the last one has a gradient.
    return hard - jax.lax.stop_gradient(soft) + soft


def assign_to_groups(
    logits: Float[Array, "B G S"],
    kind: str,
    temperature: float,
    gumbel_keys: Key[Array, "B"] | None = None,
) -> Float[Array, "B G S"]:
    """Assign segments to groups; every column sums to one.

    Args:
      logits: similarities of groups and segments, float32.
      kind: "gumbel" and "hard" return one-hot columns with a straight-through gradient, "soft" the
        softmax over the groups.
      temperature: divides the logits, noise included.
      gumbel_keys: keys of the noise for "gumbel"; None for no noise (evaluation).
    """
    if kind == "gumbel" and gumbel_keys is not None:
        # The largest of logits with Gumbel noise is a sample of their softmax: training tries
        # groups by their probability. With a key for each image, the draw depends neither on
        # micro-batches nor on devices.
        draw = functools.partial(jax.random.gumbel, shape=logits.shape[1:], dtype=logits.dtype)
        logits = logits + jax.vmap(draw)(gumbel_keys)
    soft = jax.nn.softmax(logits / temperature, axis=1)
    return soft if kind == "soft" else straight_through_one_hot(soft)


def group_maps(
    assignments: Sequence[Float[Array, "B _ _"]], grid: tuple[int, int]
) -> tuple[Float[Array, "B h w _"], ...]:
    """Return for each grouping stage the share of every patch in every group.

    The assignments up to a stage are multiplied: its segments are the groups of the stage before.

    Args:
      assignments: soft assignments [B, groups, segments] of the grouping stages in order.
      grid: number of patches in height and width.
    """
    maps, of_patch = [], None
    for assignment in assignments:
        if of_patch is None:
            of_patch = assignment
        else:
            # These products decide the labels of pixels: in bfloat16, a TPU's default, borders
            # would move.
            of_patch = jnp.einsum(
                "bhg,bgl->bhl", assignment, of_patch, precision=jax.lax.Precision.HIGHEST
            )
        flat = jnp.moveaxis(of_patch, 1, 2).astype(jnp.float32)  # [B, L, G]
        maps.append(flat.reshape(flat.shape[0], *grid, -1))  # [B, h, w, G]
    return tuple(maps)


def resize_maps(
    maps: Float[Array, "B h w G"], size: tuple[int, int], patch_size: int
) -> Float[Array, "B H W G"]:
    """Resize maps of patches to pixels: bilinear, half-pixel centres, no antialiasing.

    Args:
      maps: shares of every patch in every group.
      size: height and width of the images.
      patch_size: side of a patch. Padding beyond `size` is cut off; maps that lack the rest of an
        image, which fills no patch, are stretched over all of it, as published.
    """
    B, h, w, G = maps.shape
    shape = (B, max(h * patch_size, size[0]), max(w * patch_size, size[1]), G)
    resized = jax.image.resize(maps, shape, "bilinear", antialias=False)
    return resized[:, : size[0], : size[1]]


class AssignAttention(nn.Module):
    """Single-head attention with the softmax over the groups, which compete for segments."""

    out_dim: int
    kind: str = "gumbel"
    temperature: float = 1.0
    eps: float = 1.0
    kernel_init: Initializer = vit_init
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        groups: Float[Array, "B G C"],
        segments: Float[Array, "B S C"],
        *,
        noise_ids: Int[Array, "B"] | None,
    ) -> tuple[Float[Array, "B G O"], Float[Array, "B G S"]]:
        """Return the mean of each group's segments, and the soft assignment without noise."""

        def dense(dim: int, name: str) -> nn.Dense:
            return nn.Dense(dim, kernel_init=self.kernel_init, dtype=self.dtype, name=name)

        C = groups.shape[-1]
        q, k = dense(C, "q_proj")(groups), dense(C, "k_proj")(segments)  # [B, G, C], [B, S, C]
        v = dense(C, "v_proj")(segments)
        # In float32: bfloat16 makes many logits equal, and among equals the first group would win.
        logits = jnp.einsum("bgc,bsc->bgs", q, k, preferred_element_type=jnp.float32) * C**-0.5
        keys = None
        if self.kind == "gumbel" and noise_ids is not None:
            keys = example_keys(self.make_rng("gumbel"), noise_ids)
        assignment = assign_to_groups(logits, self.kind, self.temperature, keys)
        # With eps = 1 an empty group is zero. A tiny eps would multiply its gradient by 1 / eps.
        mean_weights = assignment / (assignment.sum(-1, keepdims=True) + self.eps)  # [B, G, S]
        out = dense(self.out_dim, "proj")(mean_weights.astype(self.dtype) @ v)  # [B, G, O]
        # Without noise, for maps and metrics; where nothing reads it, XLA leaves it out.
        return out, assign_to_groups(logits, "soft", self.temperature)


class PreAssignAttention(nn.Module):
    """Cross-attention block of groups on segments; as published, query and key have no norms."""

    num_heads: int
    mlp_ratio: float = 4.0
    kernel_init: Initializer = vit_init
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, groups: Float[Array, "B G C"], segments: Float[Array, "B S C"]
    ) -> Float[Array, "B G C"]:
        """Apply attention and a pre-norm MLP, each with a residual, then a LayerNorm."""
        C = groups.shape[-1]
        x = groups + CrossAttention(self.num_heads, self.kernel_init, self.dtype, name="attn")(
            groups, segments
        )
        mlp = Mlp(
            int(C * self.mlp_ratio),
            C,
            gelu,
            self.kernel_init,
            self.kernel_init,
            dtype=self.dtype,
            name="mlp",
        )
        x = x + mlp(layer_norm(self.dtype, "norm2")(x))
        return layer_norm(self.dtype, "norm_post")(x)


class GroupingBlock(nn.Module):
    """Merges segments into `num_output_groups` groups (equations 4 to 7).

    Attributes:
      num_output_groups: groups left after the block.
      token_hidden_dim: hidden width of the MLP over the token axis.
      out_dim: channels of the new segments; where it isn't the input's, the residual is projected.
      num_heads: heads of the cross-attention.
      mlp_ratio: hidden width of the channel MLPs over their width.
      assignment: "gumbel", "hard" or "soft".
      temperature: divides the assignment's logits.
      assign_eps: added to a group's number of segments before dividing by it.
      kernel_init: of the weights.
      dtype: of the computation.
    """

    num_output_groups: int
    token_hidden_dim: int
    out_dim: int
    num_heads: int
    mlp_ratio: float = 4.0
    assignment: str = "gumbel"
    temperature: float = 1.0
    assign_eps: float = 1.0
    kernel_init: Initializer = vit_init
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        segments: Float[Array, "B S C"],
        group_tokens: Float[Array, "B T C"],
        *,
        noise_ids: Int[Array, "B"] | None,
    ) -> tuple[Float[Array, "B G O"], Float[Array, "B G S"]]:
        """Return the new segments, and the soft assignment without noise.

        With `noise_ids` (see `layers.example_keys`) the segments are assigned with Gumbel noise.
        """
        dtype = self.dtype
        x = layer_norm(dtype, "norm_x")(segments)
        groups = layer_norm(dtype, "norm_tokens")(group_tokens)
        # From T group tokens to G groups by an MLP over the token axis; each channel by itself.
        groups = TokenMlp(
            self.token_hidden_dim, self.num_output_groups, self.kernel_init, dtype, name="mlp_inter"
        )(groups)
        groups = layer_norm(dtype, "norm_post_tokens")(groups)  # [B, G, C]
        groups = PreAssignAttention(
            self.num_heads, self.mlp_ratio, self.kernel_init, dtype, name="pre_assign_attn"
        )(groups, x)
        assign = AssignAttention(
            self.out_dim,
            self.assignment,
            self.temperature,
            self.assign_eps,
            self.kernel_init,
            dtype,
            name="assign",
        )
        out, soft_assignment = assign(groups, x, noise_ids=noise_ids)  # [B, G, O], [B, G, S]
        # The residual is what a group without segments still has.
        out = out + self._residual(groups)
        mlp = Mlp(
            int(self.out_dim * self.mlp_ratio),
            self.out_dim,
            fc1_init=self.kernel_init,
            fc2_init=self.kernel_init,
            dtype=dtype,
            name="mlp_channels",
        )
        return out + mlp(layer_norm(dtype, "norm_new_x")(out)), soft_assignment

    def _residual(self, groups: Float[Array, "B G C"]) -> Float[Array, "B G O"]:
        if groups.shape[-1] == self.out_dim:
            return groups
        groups = layer_norm(self.dtype, "reduction_norm")(groups)
        reduction = nn.Dense(
            self.out_dim,
            use_bias=False,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="reduction",
        )
        return reduction(groups)
