"""Local alignment: segments against words by token-wise late interaction (FILIP, 2111.07783).

As in the contrastive losses (see there for the reasons), a device compares its own examples with
the global batch block by block, recomputes the scores in the backward pass, and computes the whole
gradient of its own embeddings.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from groupvit_jax.losses import pairwise
from groupvit_jax.losses.pairwise import Both, Metrics, Pairing, Side, product
from groupvit_jax.typing import Array, Bool, Float, Int

# Words of an image: the tokens of its caption, or its prompts, one for each noun.
LOCAL_WORDS = ("tokens", "prompts")
# Who looks for a counterpart: segments and words, or words alone (arXiv 2304.01114).
LOCAL_SEEKERS = ("both", "words")
# Instead of minus infinity: inf - inf is NaN.
NEVER = -1e30


def local_alignment_loss(
    segments: Float[Array, "B G D"],
    words: Float[Array, "B W D"],
    word_mask: Bool[Array, "B W"],
    logit_scale: Float[Array, ""],
    pairing: Pairing = pairwise.ON_ONE_DEVICE,
    ids: Int[Array, "B"] | None = None,
    seekers: str = "both",
) -> tuple[Float[Array, ""], Metrics]:
    """Match images with texts by their parts.

    With `s[i, g, j, w]` the scaled cosine of segment g of image i and word w of text j, there are
    two similarities: of image i to text j, `A[i, j] = mean_g max_w s[i, g, j, w]`, and of text j to
    image i, `T[i, j] = mean_w max_g s[i, g, j, w]`, over unmasked words. The loss is the mean
    of two cross-entropies over the global batch: of A over all texts, for each image, against its
    own text; and of T over all images, for each text, against its own image.

    With "words" as seekers T takes A's place: background need not resemble a word (2304.01114).

    A text without words is never a negative, and neither it nor its image contributes to the mean;
    the image stays a negative of other texts. With ids, the positives of an image are all texts
    with the id of its own, equally weighted, and likewise for a text.

    Args:
      segments: embeddings of the examples' segments, not normalised; within `jax.shard_map` those
        of this device's examples.
      words: embeddings of each example's words, not normalised.
      word_mask: mask of the words present.
      logit_scale: logarithm of the inverse temperature.
      pairing: where and how it is computed. A block has as many examples as have together at
        most `block_size` segments or words, but at least one. Its kind is ignored: always a
        softmax.
      ids: identities of the texts; None: all are different.
      seekers: one of `LOCAL_SEEKERS`.

    Returns:
      The value over the global batch, 0 if there are no words, and its metrics:
      `image_to_text_accuracy` and `text_to_image_accuracy` over the texts with words, and
      `texts_with_words`, their share.
    """
    scale = pairwise.clipped_scale(logit_scale)
    segments, words = pairwise.l2_normalize(segments), scale * pairwise.l2_normalize(words)
    pairing = dataclasses.replace(
        pairing,
        kind="softmax",
        block_size=max(1, pairing.block_size // max(segments.shape[1], words.shape[1])),
    )
    own_ids = pairwise.global_positions(pairing, len(segments)) if ids is None else ids
    found = _compare(pairing, seekers, segments, words, word_mask, own_ids)
    image, text = (jax.tree.map(lambda x: x[:, 0], totals) for totals in found)  # N = 1
    has_words = word_mask.any(axis=1)
    mean = _mean_over_texts(pairing, has_words)
    # An image has as many positives as its text, and none if the text has no words.
    number = jnp.maximum(image.positives.number, 1.0)
    positives = (image.positives.total + text.positives.total) / number
    return mean(image.total + text.total - positives) / 2, {
        "image_to_text_accuracy": mean(jnp.float32(image.hit)),
        "text_to_image_accuracy": mean(jnp.float32(text.hit)),
        "texts_with_words": pairwise.global_mean(pairing, jnp.float32(has_words)),
    }


def _mean_over_texts(pairing: Pairing, has_words: Bool[Array, "B"]) -> Callable[..., Array]:
    """Return the function for the mean over the texts with words of all devices, 0 without any."""
    number = jnp.maximum(pairwise.global_sum(pairing, jnp.float32(has_words)), 1.0)
    return lambda x: pairwise.global_sum(pairing, jnp.where(has_words, x, 0.0)) / number


class Examples(NamedTuple):
    """Normalised, scaled embeddings, with the masks of words and the identities of texts."""

    segments: Float[Array, "B G D"]
    words: Float[Array, "B W D"]
    mask: Bool[Array, "B W"]
    ids: Int[Array, "B"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _compare(
    pairing: Pairing,
    seekers: str,
    segments: Float[Array, "B G D"],
    words: Float[Array, "B W D"],
    mask: Bool[Array, "B W"],
    ids: Int[Array, "B"],
) -> Both:
    """Compare this device's images with all texts, and its texts with all images."""
    return _compare_forward(pairing, seekers, segments, words, mask, ids)[0]


def _compare_forward(
    pairing: Pairing, seekers: str, segments: Array, words: Array, mask: Array, ids: Array
) -> tuple[Both, Any]:
    own = Examples(segments, words, mask, ids)
    everyone = pairwise.gather(pairing, own)

    def add(totals: Both, block: Examples) -> Both:
        to_text, _ = _similarities(seekers, own.segments, block.words, block.mask)
        _, to_image = _similarities(seekers, block.segments, own.words, own.mask)
        add_to = functools.partial(pairwise.add_logits, "softmax", _same(own, block)[:, None])
        return Both(
            add_to(totals.image, to_text[:, None]), add_to(totals.text, to_image.T[:, None])
        )

    # Derived from the words, so that `shard_map` knows that they differ between devices.
    none = pairwise.no_totals(words[:, :1, 0], count_positives=True)
    totals = pairwise.fold(pairing, add, Both(none, none), everyone)
    totals = Both(*(pairwise.finished("softmax", part) for part in totals))
    return totals, (own, everyone, totals.image.total, totals.text.total)


def _compare_backward(
    pairing: Pairing, seekers: str, residuals: Any, gradients: Both
) -> tuple[Array | None, ...]:
    own, everyone, image_total, text_total = residuals
    image_side = pairwise.side(image_total, gradients.image)
    text_side = pairwise.side(text_total, gradients.text)
    others = (everyone, *pairwise.gather(pairing, (image_side, text_side)))

    def add(sums: tuple[Array, Array], block: tuple[Examples, Side, Side]) -> tuple[Array, Array]:
        examples, block_image_side, block_text_side = block
        same = _same(own, examples)
        by_segments = functools.partial(
            _similarities, seekers, words=examples.words, mask=examples.mask
        )
        by_words = functools.partial(_similarities, seekers, examples.segments, mask=own.mask)
        segments = _pull_back(by_segments, own.segments, same, image_side, block_text_side)
        words = _pull_back(by_words, own.words, same.T, block_image_side, text_side)
        return sums[0] + segments, sums[1] + words

    sums = (jnp.zeros_like(own.segments), jnp.zeros_like(own.words))
    return *pairwise.fold(pairing, add, sums, others), None, None


_compare.defvjp(_compare_forward, _compare_backward)


def _similarities(
    seekers: str,
    segments: Float[Array, "B G D"],
    words: Float[Array, "C W D"],
    mask: Bool[Array, "C W"],
) -> tuple[Float[Array, "B C"], Float[Array, "B C"]]:
    """Return the similarities `A` of images to texts and `T`, transposed, of texts to images."""
    scores = product("bgd,cwd->bcgw", segments, words)  # [B, C, G, W]
    to_image = jnp.where(mask, scores.max(axis=2), 0.0).sum(axis=2)
    to_image /= jnp.maximum(mask.sum(axis=1), 1)
    if seekers == "words":
        # A text without words has similarity 0, which could beat real texts.
        return jnp.where(mask.any(axis=1), to_image, NEVER), to_image
    return jnp.where(mask[:, None], scores, NEVER).max(axis=3).mean(axis=2), to_image


def _same(own: Examples, block: Examples) -> Bool[Array, "B C"]:
    """Return the mask of positives: texts of the same id that have words."""
    has_words = own.mask.any(axis=1)[:, None] & block.mask.any(axis=1)
    return (own.ids[:, None] == block.ids) & has_words


def _pull_back(
    similarities: Callable[[Array], tuple[Array, Array]],
    embeddings: Array,
    same: Bool[Array, "B C"],
    image_side: Side,
    text_side: Side,
) -> Array:
    """Return the gradient of the loss with respect to the embeddings behind similarities [B, C]."""
    (to_text, to_image), pull = jax.vjp(similarities, embeddings)  # [B, C] each
    text_side = jax.tree.map(jnp.transpose, text_side)
    by_image = pairwise.softmax_weights(same, to_text, image_side)
    return pull((by_image, pairwise.softmax_weights(same, to_image, text_side)))[0]
