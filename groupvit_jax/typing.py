"""Array aliases that every public function is annotated with.

Sizes: `B` images, `H W` pixels, `L` patches, `S` segments, `G` groups, `C` channels, `D` joint
embedding width, `K` prompts per caption, `N` texts per image (`1 + K`), `T` tokens of a text, `L`
also tokens of a packed row of texts.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt, UInt8

__all__ = ["Array", "Batch", "Bool", "Float", "ImageFeatures", "Int", "Key", "Params", "PyTree"]
__all__ += ["TwoTowerOutput", "UInt", "UInt8"]

# "image": UInt8 "B H W 3"; "text": Int32 "B L", the caption's and its prompts' tokens behind each
# other, padded with zeros; "text_ends": Int32 "B N", where the caption and the K prompts end in
# that row; "text_ids": Int32 "B N", what tells captions and prompts' words apart, from 0 to
# 2^31 - 1; "text_overflow": Int32 "B", how many prompts did not fit and are the caption instead;
# "index": Int32 "B", the position of the example in its source. To learn from masks, "mask": UInt8
# "B H W" in place of the texts, 255 where a pixel has no class.
Batch = Mapping[str, Any]
Params = PyTree


class ImageFeatures(NamedTuple):
    """What the image encoder yields.

    Attributes:
      embedding: mean of the last stage's segments after the final LayerNorm.
      segments: the last stage's segments after the final LayerNorm.
      assignments: for each grouping block in order, the softmax over the groups without noise.
    """

    embedding: Float[Array, "B C"]
    segments: Float[Array, "B G C"]
    assignments: tuple[Float[Array, "B _ _"], ...]


class TwoTowerOutput(NamedTuple):
    """Joint embeddings (not normalised, float32), log temperatures and image features.

    The biases are the sigmoid losses'; the features are absent where only projectors ran, segments
    and the captions' tokens where no loss compares them.
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
