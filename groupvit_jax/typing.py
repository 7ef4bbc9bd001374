"""Array types for annotations, and the structures that packages exchange.

Sizes in annotations: `B` examples, `H W` pixels, `h w` patches in height and width, `S` segments
(of patches before the first grouping), `G` groups, `C` channels, `D` joint embedding channels, `K`
prompts of an image, `N` texts of an image (`1 + K`), `T` tokens of one text, `L` positions of a
sequence (a row of packed texts, or a table of patches), `W` words.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt, UInt8

__all__ = ["Array", "Batch", "Bool", "Float", "ImageFeatures", "Int", "Key", "Params", "PyTree"]
__all__ += ["TwoTowerOutput", "UInt", "UInt8"]

# A training batch. "image": UInt8 "B H W 3". "text": Int32 "B L", tokens of the caption and then of
# the prompts, padded with zeros. "text_ends": Int32 "B N", positions of the end-of-text tokens of
# caption and prompts in that row. "text_ids": Int32 "B N", hashes of caption and prompt words, from
# 0 to 2^31 - 1: equal for identical texts. "text_overflow": Int32 "B", number of prompts that did
# not fit and were replaced by the caption. "index": Int32 "B", index of the example in its source.
# "superpixels", if a loss needs them: Int32 "B h w", of patches; 0 where the image was moved out.
# "bank_nouns", likewise: Int32 "B M", rows of the caption's nouns in the noun bank, then -1.
# With masks instead of texts: "mask": UInt8 "B H W", 255 for unlabelled pixels.
Batch = Mapping[str, Any]
Params = PyTree


class ImageFeatures(NamedTuple):
    """Output of the image encoder.

    Attributes:
      embedding: mean of the last stage's segments after the final LayerNorm.
      segments: the last stage's segments after the final LayerNorm.
      assignments: soft assignments [B, groups, segments] of the grouping blocks, without noise.
    """

    embedding: Float[Array, "B C"]
    segments: Float[Array, "B G C"]
    assignments: tuple[Float[Array, "B _ _"], ...]


class TwoTowerOutput(NamedTuple):
    """Output of both towers: joint embeddings, not normalised, and the losses' parameters.

    Attributes:
      image: embeddings of the images.
      text: embeddings of caption and prompts.
      logit_scale: logarithm of the inverse temperature of the global loss.
      multi_label_logit_scale: the same for the multi-label loss.
      image_features: output of the image encoder; None if only the projectors ran.
      logit_bias: bias of the global loss; None unless the losses are sigmoids.
      multi_label_logit_bias: the same for the multi-label loss.
      segments: embeddings of the segments; None unless a loss compares them.
      tokens: embeddings of the captions' tokens; None unless a loss compares them.
    """

    image: Float[Array, "B D"]
    text: Float[Array, "B N D"]
    logit_scale: Float[Array, ""]
    multi_label_logit_scale: Float[Array, ""]
    image_features: ImageFeatures | None = None
    logit_bias: Float[Array, ""] | None = None
    multi_label_logit_bias: Float[Array, ""] | None = None
    segments: Float[Array, "B G D"] | None = None
    tokens: Float[Array, "B W D"] | None = None
