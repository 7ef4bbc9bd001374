"""The GroupViT image encoder: patches, then stages of transformer blocks and grouping."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype, Initializer

from groupvit_jax.models.activations import ACTIVATIONS
from groupvit_jax.models.blocks import Execution, run_blocks
from groupvit_jax.models.grouping import ASSIGNMENTS, GroupingBlock
from groupvit_jax.models.layers import (
    LAYER_NORM_EPS,
    TokenMlp,
    TransformerBlock,
    draw_branch_scales,
    example_keys,
    fan_in_uniform,
    layer_norm,
    uniform_bias,
    vit_init,
)
from groupvit_jax.models.position_embedding import (
    resize_position_embedding,
    sincos_position_embedding,
)
from groupvit_jax.typing import Array, Float, ImageFeatures, Int

POSITION_EMBEDDINGS = ("learned", "sincos")


class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens, normalised unless `norm` is False."""

    patch_size: int
    width: int
    norm: bool = True
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w C"]:
        """Embed the patches; height and width are padded with zeros to multiples of the patch."""
        patch = (self.patch_size, self.patch_size)
        H, W = images.shape[1:3]
        # After normalisation, a zero is ImageNet's mean colour.
        images = jnp.pad(images, ((0, 0), (0, -H % patch[0]), (0, -W % patch[1]), (0, 0)))
        proj = nn.Conv(
            self.width,
            patch,
            patch,
            "VALID",
            kernel_init=fan_in_uniform,
            bias_init=uniform_bias(3 * self.patch_size**2),
            dtype=self.dtype,
            name="proj",
        )
        x = proj(images)  # [B, h, w, C]
        return layer_norm(self.dtype, "norm")(x) if self.norm else x


class GroupingStage(nn.Module):
    """Transformer blocks over segments and group tokens, then the grouping block.

    Attributes:
      depth: number of transformer blocks.
      num_group_tokens: number of group tokens; 0 makes a plain stage without grouping.
      num_output_groups: number of segments returned (unused without group tokens).
      out_dim: channels of the segments returned.
      token_hidden_dim: hidden width of the MLPs over the token axis.
      first: whether this is the first stage, which receives no group tokens.
      kernel_init: initialiser of the weights.
      num_heads, mlp_ratio, assignment, temperature, assign_eps, activation, norm_eps, execution,
        dtype: see `ImageEncoder`.
    """

    depth: int
    num_group_tokens: int
    num_output_groups: int
    out_dim: int
    token_hidden_dim: int
    first: bool
    num_heads: int
    mlp_ratio: float
    assignment: str
    temperature: float
    assign_eps: float
    kernel_init: Initializer = vit_init
    activation: str = "gelu"
    norm_eps: float = LAYER_NORM_EPS
    execution: Execution = Execution()
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        segments: Float[Array, "B S C"],
        previous_group_tokens: Float[Array, "B P Q"] | None,
        branch_scales: Float[Array, "D 2 B"] | None = None,
        *,
        noise_ids: Int[Array, "B"] | None,
    ) -> tuple[Float[Array, "B G O"], Float[Array, "B T C"] | None, Float[Array, "B G S"] | None]:
        """Return the new segments, the group tokens after the blocks, and the soft assignment."""
        S = segments.shape[1]
        x = segments
        if self.num_group_tokens:
            # [B, S + T, C]; group tokens last, so that the first S are the segments again below.
            x = jnp.concatenate([x, self._group_tokens(segments, previous_group_tokens)], axis=1)
        block = TransformerBlock(
            self.num_heads,
            self.mlp_ratio,
            ACTIVATIONS[self.activation],
            qkv_init=self.kernel_init,
            proj_init=self.kernel_init,
            fc1_init=self.kernel_init,
            fc2_init=self.kernel_init,
            dtype=self.dtype,
            attention_fn=self.execution.attention_fn,
            norm_eps=self.norm_eps,
            parent=None,
        )
        x = run_blocks(
            self, block, self.depth, x, branch_scales=branch_scales, execution=self.execution
        )
        if not self.num_group_tokens:
            return x, None, None
        segments, group_tokens = x[:, :S], x[:, S:]
        downsample = GroupingBlock(
            self.num_output_groups,
            self.token_hidden_dim,
            self.out_dim,
            self.num_heads,
            self.mlp_ratio,
            self.assignment,
            self.temperature,
            self.assign_eps,
            self.kernel_init,
            self.dtype,
            name="downsample",
        )
        segments, assignment = downsample(segments, group_tokens, noise_ids=noise_ids)
        return segments, group_tokens, assignment

    def _group_tokens(
        self, segments: Float[Array, "B S C"], previous: Float[Array, "B P Q"] | None
    ) -> Float[Array, "B T C"]:
        B, _, C = segments.shape
        shape = (1, self.num_group_tokens, C)
        # A later stage's own tokens start at zero, so at first its group tokens are those of the
        # stage before, projected.
        init = vit_init if self.first else nn.initializers.zeros
        tokens = self.param("group_token", init, shape).astype(self.dtype)
        if previous is None:
            return jnp.broadcast_to(tokens, (B, *shape[1:]))
        return tokens + GroupProjector(
            self.num_group_tokens,
            self.token_hidden_dim,
            C,
            self.kernel_init,
            self.dtype,
            name="group_projector",
        )(previous)


class GroupProjector(nn.Module):
    """Projection of one stage's group tokens to the initial group tokens of the next."""

    num_tokens: int
    hidden_dim: int
    out_dim: int
    kernel_init: Initializer = vit_init
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: Float[Array, "B P Q"]) -> Float[Array, "B T C"]:
        """Apply LayerNorm and an MLP over the token axis, then a linear layer if widths differ."""
        x = layer_norm(self.dtype, "norm")(tokens)
        x = TokenMlp(self.hidden_dim, self.num_tokens, self.kernel_init, self.dtype, name="mlp")(x)
        if x.shape[-1] == self.out_dim:
            return x
        return nn.Dense(
            self.out_dim,
            use_bias=False,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="reduction",
        )(x)


def find_contradictions(fields: Mapping[str, Any]) -> list[str]:
    """Return a line for every contradiction between the fields of an `ImageEncoder`.

    Args:
      fields: fields of `config.model.image`, each valid by itself.
    """
    depths, tokens = fields["depths"], fields["num_group_tokens"]
    groups, factors = fields["num_output_groups"], fields["width_factors"]
    width, heads = fields["width"], fields["num_heads"]
    size, patch = fields["image_size"], fields["patch_size"]
    checks = (
        ("num_group_tokens", f"one entry a stage of depths {depths}", len(tokens) == len(depths)),
        # A later stage starts from the group tokens of the stage before it.
        ("num_group_tokens", "0 in the last stage only", 0 not in tokens[:-1]),
        (
            "num_output_groups",
            f"one entry a grouping stage of num_group_tokens {tokens}",
            len(groups) == sum(n > 0 for n in tokens),
        ),
        ("width_factors", "() or one entry a stage", len(factors) in (0, len(depths))),
        # Every width is a multiple of the first, so the heads divide all of them.
        ("width", f"a multiple of num_heads {heads}", heads > 0 and width % heads == 0),
        (
            "width",
            "a multiple of 4 for sin-cos positions",
            fields["position_embedding"] != "sincos" or width % 4 == 0,
        ),
        ("image_size", f"a multiple of patch_size {patch}", size % patch == 0),
        ("assignment", " or ".join(map(repr, ASSIGNMENTS)), fields["assignment"] in ASSIGNMENTS),
        (
            "position_embedding",
            " or ".join(map(repr, POSITION_EMBEDDINGS)),
            fields["position_embedding"] in POSITION_EMBEDDINGS,
        ),
        # Configurations recorded before a field existed lack it.
        (
            "activation",
            " or ".join(map(repr, ACTIVATIONS)),
            fields.get("activation", "gelu") in ACTIVATIONS,
        ),
    )
    return [
        f"config.model.image.{name}: {fields[name]!r} found, expected {expected}"
        for name, expected, holds in checks
        if not holds
    ]


class ImageEncoder(nn.Module):
    """GroupViT (arXiv 2202.11094, section 3.1); the defaults are the published model.

    Attributes:
      image_size: side of the training images, in pixels: the grid of the learned positions.
      patch_size: side of a patch, in pixels.
      width: channels of the first stage.
      num_heads: attention heads, the same number in every block.
      mlp_ratio: hidden width of an MLP over its width.
      depths: number of transformer blocks in each stage.
      num_group_tokens: number of group tokens in each stage; 0 for a last stage without grouping.
      num_output_groups: number of segments after each grouping stage.
      width_factors: width of each stage over `width`; () for the same everywhere.
      position_embedding: "learned" or "sincos".
      assignment: "gumbel" (hard, with noise when training), "hard" or "soft".
      temperature: divisor of the assignment's logits.
      assign_eps: added to a group's number of segments before dividing by it.
      init_std: standard deviation of the stages' initial weights. The published model has 0.02;
        narrow models need about `width ** -0.5`, because their assignments are otherwise almost
        uniform at the start and the noise alone decides.
      patch_norm: LayerNorm behind the patch embedding; plain ViTs have none.
      pre_norm: LayerNorm of the tokens before the first block, as in CLIP.
      activation: of the blocks' MLPs, one of `layers.ACTIVATIONS`.
      norm_eps: of the LayerNorms of blocks and segments; 1e-6 in most plain ViTs.
      drop_path_rate: stochastic depth of the last block; rises linearly from 0 over all blocks.
      execution: how the blocks of a stage are computed.
      dtype: type of the computation; parameters are float32.

    Raises:
      ValueError: if the fields contradict each other.
    """

    image_size: int = 224
    patch_size: int = 16
    width: int = 384
    num_heads: int = 6
    mlp_ratio: float = 4.0
    depths: Sequence[int] = (6, 3, 3)
    num_group_tokens: Sequence[int] = (64, 8, 0)
    num_output_groups: Sequence[int] = (64, 8)
    width_factors: Sequence[int] = ()
    position_embedding: str = "learned"
    assignment: str = "gumbel"
    temperature: float = 1.0
    assign_eps: float = 1.0
    init_std: float = 0.02
    drop_path_rate: float = 0.1
    patch_norm: bool = True
    pre_norm: bool = False
    activation: str = "gelu"
    norm_eps: float = LAYER_NORM_EPS
    execution: Execution = Execution()
    dtype: Dtype = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if errors := find_contradictions(fields):
            raise ValueError("; ".join(errors))

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "B H W 3"],
        *,
        noise_ids: Int[Array, "B"] | None = None,
    ) -> ImageFeatures:
        """Encode images of any size.

        Args:
          images: normalised with ImageNet's statistics; a height or width that the patch doesn't
            divide is padded with zeros at the bottom or right.
          noise_ids: a number for each image, which determines its Gumbel noise (rng "gumbel") and
            stochastic depth (rng "drop_path"), see `layers.example_keys`. None: no noise, as in
            evaluation.
        """
        embed = PatchEmbed(
            self.patch_size, self.width, self.patch_norm, self.dtype, name="patch_embed"
        )
        x = embed(images)  # [B, h, w, C]
        grid = (x.shape[1], x.shape[2])
        x = x.reshape(x.shape[0], -1, self.width) + self._positions(grid).astype(self.dtype)
        if self.pre_norm:
            x = layer_norm(self.dtype, "pre_norm", self.norm_eps)(x)
        factors = [*(self.width_factors or [1] * len(self.depths)), 0]
        factors[-1] = factors[-2]  # the last stage keeps its width
        scales = None
        if noise_ids is not None and self.drop_path_rate:
            rates = np.linspace(0.0, self.drop_path_rate, sum(self.depths)).tolist()
            scales = draw_branch_scales(example_keys(self.make_rng("drop_path"), noise_ids), rates)
        group_tokens, assignments = None, []
        for i, depth in enumerate(self.depths):
            stage = GroupingStage(
                depth=depth,
                num_group_tokens=self.num_group_tokens[i],
                num_output_groups=(*self.num_output_groups, 0)[i],  # the last stage may not group
                out_dim=self.width * factors[i + 1],
                token_hidden_dim=self.width // 2,
                first=i == 0,
                num_heads=self.num_heads,
                mlp_ratio=self.mlp_ratio,
                assignment=self.assignment,
                temperature=self.temperature,
                assign_eps=self.assign_eps,
                kernel_init=nn.initializers.normal(self.init_std),
                activation=self.activation,
                norm_eps=self.norm_eps,
                execution=self.execution,
                dtype=self.dtype,
                name=f"stages_{i}",
            )
            first = sum(self.depths[:i])
            stage_scales = None if scales is None else scales[first : first + depth]
            x, group_tokens, assignment = stage(x, group_tokens, stage_scales, noise_ids=noise_ids)
            assignments += [] if assignment is None else [assignment]
        segments = layer_norm(self.dtype, "norm", self.norm_eps)(x)  # [B, G, C]
        # In float32: BatchNorm in the projector would amplify the rounding of bfloat16 means.
        embedding = segments.astype(jnp.float32).mean(axis=1)
        return ImageFeatures(embedding, segments, tuple(assignments))

    def _positions(self, grid: tuple[int, int]) -> Float[Array, "1 L C"]:
        if self.position_embedding == "sincos":
            # Computed for any grid, so nothing has to be resized.
            return jnp.asarray(sincos_position_embedding(grid, self.width))
        side = self.image_size // self.patch_size
        table = self.param("position_embedding", vit_init, (1, side * side, self.width))
        return resize_position_embedding(table, (side, side), grid)
