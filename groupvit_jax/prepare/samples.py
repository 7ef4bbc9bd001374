"""Items of the input to the samples that shards hold."""

import json
from typing import NamedTuple

from groupvit_jax.data.images import superpixels
from groupvit_jax.data.images.decode import BrokenImageError, decode
from groupvit_jax.data.text import caption_tokens
from groupvit_jax.data.text.tokenizers import Tokenizer
from groupvit_jax.prepare import packed_rows
from groupvit_jax.prepare.images import ImageLimits, TooSmallError, encode_image
from groupvit_jax.prepare.inputs import Item
from groupvit_jax.prepare.writers import PreparedSample

__all__ = ["Dropped", "convert_item"]

_BROKEN, _TOO_SMALL = "broken image", "smaller than 8 pixels"
_OURS = ("nouns", "tokens", "superpixels")  # fields that training reads


class Dropped(NamedTuple):
    """The reason why an item is not in the shards, and more about it."""

    reason: str
    detail: str = ""


def convert_item(
    key: str,
    item: Item,
    limits: ImageLimits,
    tokenizer: Tokenizer | None,
    with_superpixels: bool,
) -> PreparedSample | Dropped:
    """Return the sample of an item, or why there is none.

    Args:
      key: of the sample.
      item: from the input.
      limits: of the image.
      tokenizer: whose token ids are stored; None for none.
      with_superpixels: whether superpixels are found.
    """
    if item.problem or item.image is None:
        return Dropped(item.problem, item.detail)
    try:
        image, sizes = encode_image(item.image, limits)
    except TooSmallError as error:
        return Dropped(_TOO_SMALL, str(error))
    except BrokenImageError as error:
        return Dropped(_BROKEN, str(error))
    kept = {name: value for name, value in item.metadata.items() if name not in _OURS}
    fields = {
        **sizes,
        **kept,  # img2dataset's original sizes refer to the image before its own resizing
        "key": key,
        "source": item.source,
        "caption": item.captions[0],
        "captions": item.captions,
        "width": sizes["width"],
        "height": sizes["height"],
        **caption_tokens.annotate(item.captions, tokenizer),
    }
    if with_superpixels:
        fields["superpixels"] = superpixels.encode(superpixels.find(decode(image)))
    metadata = json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace")
    lost = packed_rows.lost_prompts(key, item.captions, fields["nouns"], tokenizer)
    return PreparedSample(key, image, item.captions, metadata, lost, fields["nouns"])
