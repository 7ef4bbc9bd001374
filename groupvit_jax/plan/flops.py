"""FLOPs of a training step, counted by hand from the configuration.

Only matrix products count, two FLOPs for a multiplication and an addition. Everything else (norms,
softmax, activations, the optimizer) is a few percent of them.
"""

from collections.abc import Sequence

from groupvit_jax.models.image_encoder import ImageEncoder
from groupvit_jax.models.segmentation import SegmentationModel
from groupvit_jax.models.siglip_text_encoder import SiglipTextEncoder
from groupvit_jax.models.two_tower import Projector, TextTower, TwoTower

# Mean number of tokens, start and end included (docs/text.md).
CAPTION_TOKENS = 14
PROMPT_TOKENS = 10


def useful_rows(num_texts: int) -> list[int]:
    """Return the tokens of an image's caption and of its prompts, without padding."""
    return [CAPTION_TOKENS] + [PROMPT_TOKENS] * (num_texts - 1)


def training_flops(
    model: TwoTower | SegmentationModel, *, rows: Sequence[int], num_texts: int, batch_size: int
) -> float:
    """Return the FLOPs an image of a training step in which nothing is computed twice.

    Args:
      model: contrastive, or a segment head trained with masks, for which no text counts.
      rows: number of tokens of each row of an image's text; every token attends to its row.
      num_texts: caption and prompts of an image.
      batch_size: global, with all of whose texts an image is compared.
    """
    image = model.image_encoder
    if isinstance(model, SegmentationModel):
        rest = segment_head_flops(image, model.segment_head.num_classes)
    else:
        projector = model.text_projector
        if isinstance(model.text_encoder, SiglipTextEncoder):  # whose texts share no row
            rows = [model.text_encoder.context_length] * num_texts
        rest = (
            text_encoder_flops(model.text_encoder, rows)
            + projector_flops(model.image_projector, _stage_widths(image)[-1])
            + projector_flops(projector, model.text_encoder.width) * num_texts
            + 2.0 * projector.out_dim * num_texts * batch_size
        )
    # Backward takes two products for each product forward, but pixels need no gradient.
    return 3 * (image_encoder_flops(image) + rest) - _patch_flops(image)


def image_encoder_flops(encoder: ImageEncoder) -> float:
    """Return the FLOPs of the encoder's forward pass of one image."""
    flops = _patch_flops(encoder)
    S, tokens, widths = _num_patches(encoder), 0, _stage_widths(encoder)
    hidden = encoder.width // 2
    for stage, depth in enumerate(encoder.depths):
        T, C, out = encoder.num_group_tokens[stage], widths[stage], widths[stage + 1]
        if stage and T:  # the group tokens of the stage before are carried over
            previous = widths[stage - 1]
            flops += 2 * previous * hidden * (tokens + T) + _residual_flops(T, previous, C)
        flops += depth * _block_flops(S + T, C, encoder.mlp_ratio)
        if T:
            G = encoder.num_output_groups[stage]
            # The MLP over tokens, T -> hidden -> G for each of C channels.
            flops += 2 * C * hidden * (T + G)
            flops += _grouping_flops(S, G, C, out, encoder.mlp_ratio)
            S, tokens = G, T
    return flops


def text_encoder_flops(encoder: TextTower, rows: Sequence[int]) -> float:
    """Return the FLOPs of the encoder's forward pass of one image's texts.

    Args:
      encoder: whose MLPs are four times as wide as its blocks.
      rows: number of tokens of each row. Pairs that the causal mask hides count.
    """
    W, num_tokens, num_pairs = encoder.width, sum(rows), sum(T * T for T in rows)
    # Matrices of W x W: 4 of the attention and 8 of the MLP; logits and average over all pairs.
    return encoder.num_layers * (24.0 * num_tokens * W * W + 4 * num_pairs * W)


def projector_flops(projector: Projector, width: int) -> float:
    """Return the FLOPs of a projector for one vector of `width` channels."""
    return 2.0 * projector.hidden_dim * (width + projector.out_dim)


def segment_head_flops(encoder: ImageEncoder, num_classes: int) -> float:
    """Return the FLOPs of the segment head and of its full-size maps for one image.

    Args:
      encoder: that the head is on.
      num_classes: of the head.
    """
    groups, side = encoder.num_output_groups, encoder.image_size // encoder.patch_size
    head = 2.0 * groups[-1] * _stage_widths(encoder)[-1] * num_classes
    pairs = zip(groups[1:], groups[:-1], strict=True)
    maps = sum(2.0 * new * old * _num_patches(encoder) for new, old in pairs)
    # Along one axis, [side, side] -> [image, side], then along the other.
    resized = 2.0 * groups[-1] * side * encoder.image_size * (side + encoder.image_size)
    return head + maps + resized


def _num_patches(encoder: ImageEncoder) -> int:
    return (encoder.image_size // encoder.patch_size) ** 2


def _patch_flops(encoder: ImageEncoder) -> float:
    return 2.0 * _num_patches(encoder) * encoder.patch_size**2 * 3 * encoder.width


def _stage_widths(encoder: ImageEncoder) -> list[int]:
    """Return the width of each stage's input, and again the last, which is the output's."""
    factors = [1, *(encoder.width_factors or [1] * len(encoder.depths))[1:]]
    return [encoder.width * factor for factor in [*factors, factors[-1]]]


def _block_flops(num_tokens: int, width: int, mlp_ratio: float) -> float:
    # qkv and projection, then the MLP's two; below, logits and average.
    linear = 2 * num_tokens * width**2 * (4 + 2 * mlp_ratio)
    return linear + 4 * num_tokens**2 * width


def _grouping_flops(
    segments: int, groups: int, width: int, out_width: int, mlp_ratio: float
) -> float:
    """Count the groups' attention on the segments, then the assignment of segments to groups."""
    pairs = 4 * groups * segments * width
    # Queries and projection on groups, keys and values on segments, the MLP on groups.
    attention = 4 * width**2 * (groups + segments) + pairs + 4 * mlp_ratio * groups * width**2
    # Queries on groups, keys and values on segments, the projection on groups.
    assignment = 2 * width**2 * (groups + 2 * segments) + pairs + 2 * groups * width * out_width
    mlp = 4 * mlp_ratio * groups * out_width**2
    return attention + assignment + _residual_flops(groups, width, out_width) + mlp


def _residual_flops(num_tokens: int, width: int, out_width: int) -> float:
    return 0.0 if width == out_width else 2.0 * num_tokens * width * out_width
