"""FLOPs of a training step, counted by hand from the configuration.

Only matrix products count, two FLOPs for a multiplication and an addition. Everything else (norms,
softmax, activations, the optimizer) is a few percent of them.
"""

from ml_collections import ConfigDict

# Mean number of tokens, start and end included (docs/text.md).
CAPTION_TOKENS = 14
PROMPT_TOKENS = 10


def useful_flops(config: ConfigDict) -> float:
    """Returns the FLOPs an image that the model needs: no padding, nothing computed twice."""
    texts = [CAPTION_TOKENS] + [PROMPT_TOKENS] * config.data.num_nouns
    return _training_flops(config, sum(texts), sum(T * T for T in texts))


def step_flops(config: ConfigDict) -> float:
    """Returns the FLOPs an image of a step over whole rows of text, nothing computed twice."""
    L = config.data.packed_length
    return _training_flops(config, L, L * L)


def _training_flops(config: ConfigDict, num_tokens: int, num_pairs: int) -> float:
    image = config.model.image
    if config.task == "segmentation":
        rest = segment_head_flops(image, len(config.segmentation.class_names))
    else:
        rest = _text_and_logits_flops(config, num_tokens, num_pairs)
    # Backward takes two products for each product forward, but pixels need no gradient.
    return 3 * (image_encoder_flops(image) + rest) - _patch_flops(image)


def _text_and_logits_flops(config: ConfigDict, num_tokens: int, num_pairs: int) -> float:
    model, num_texts = config.model, 1 + config.data.num_nouns
    return (
        text_encoder_flops(model.text, num_tokens, num_pairs)
        + projector_flops(model.projector, _stage_widths(model.image)[-1])
        + projector_flops(model.projector, model.text.width) * num_texts
        + 2.0 * model.projector.output_dim * num_texts * config.train.batch_size
    )


def image_encoder_flops(config: ConfigDict) -> float:
    """Returns the FLOPs of the encoder's forward pass of one image.

    Args:
      config: `config.model.image`.
    """
    flops = _patch_flops(config)
    S, tokens, widths = _num_patches(config), 0, _stage_widths(config)
    hidden = config.width // 2
    for stage, depth in enumerate(config.depths):
        T, C, out = config.num_group_tokens[stage], widths[stage], widths[stage + 1]
        if stage and T:  # the group tokens of the stage before are carried over
            previous = widths[stage - 1]
            flops += 2 * previous * hidden * (tokens + T) + _residual_flops(T, previous, C)
        flops += depth * _block_flops(S + T, C, config.mlp_ratio)
        if T:
            G = config.num_output_groups[stage]
            flops += 2 * C * hidden * (T + G)
            flops += _grouping_flops(S, G, C, out, config.mlp_ratio)
            S, tokens = G, T
    return flops


def text_encoder_flops(config: ConfigDict, num_tokens: int, num_pairs: int) -> float:
    """Returns the FLOPs of the encoder's forward pass of one image's texts.

    Args:
      config: `config.model.text`.
      num_tokens: of all texts.
      num_pairs: of query and key, including those that the causal mask hides.
    """
    W = config.width
    return config.num_layers * (24.0 * num_tokens * W * W + 4 * num_pairs * W)


def projector_flops(config: ConfigDict, width: int) -> float:
    """Returns the FLOPs of a projector for one vector of `width` channels."""
    return 2.0 * config.hidden_dim * (width + config.output_dim)


def segment_head_flops(config: ConfigDict, num_classes: int) -> float:
    """Returns the FLOPs of the segment head and of its full-size maps for one image.

    Args:
      config: `config.model.image`.
      num_classes: of the head.
    """
    groups, side = config.num_output_groups, config.image_size // config.patch_size
    head = 2.0 * groups[-1] * _stage_widths(config)[-1] * num_classes
    pairs = zip(groups[1:], groups[:-1], strict=True)
    maps = sum(2.0 * new * old * _num_patches(config) for new, old in pairs)
    resized = 2.0 * groups[-1] * side * config.image_size * (side + config.image_size)
    return head + maps + resized


def _num_patches(config: ConfigDict) -> int:
    return (config.image_size // config.patch_size) ** 2


def _patch_flops(config: ConfigDict) -> float:
    return 2.0 * _num_patches(config) * config.patch_size**2 * 3 * config.width


def _stage_widths(config: ConfigDict) -> list[int]:
    """Returns the width of each stage's input, and again the last, which is the output's."""
    factors = [1, *(config.width_factors or [1] * len(config.depths))[1:]]
    return [config.width * factor for factor in [*factors, factors[-1]]]


def _block_flops(num_tokens: int, width: int, mlp_ratio: float) -> float:
    linear = 2 * num_tokens * width**2 * (4 + 2 * mlp_ratio)
    return linear + 4 * num_tokens**2 * width


def _grouping_flops(
    segments: int, groups: int, width: int, out_width: int, mlp_ratio: float
) -> float:
    """Counts the groups' attention on the segments, then the assignment of segments to groups."""
    pairs = 4 * groups * segments * width
    attention = 4 * width**2 * (groups + segments) + pairs + 4 * mlp_ratio * groups * width**2
    assignment = 2 * width**2 * (groups + 2 * segments) + pairs + 2 * groups * width * out_width
    mlp = 4 * mlp_ratio * groups * out_width**2
    return attention + assignment + _residual_flops(groups, width, out_width) + mlp


def _residual_flops(num_tokens: int, width: int, out_width: int) -> float:
    return 0.0 if width == out_width else 2.0 * num_tokens * width * out_width
