"""Zero-shot segmentation by the published protocol: groups take classes, pixels take groups.

Pure functions of arrays, jitted by their callers; scores are averaged over sliding windows, and
the evaluator accumulates one confusion matrix over a whole set.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from groupvit_jax.losses import clipped_scale, l2_normalize
from groupvit_jax.models.two_tower import TwoTower
from groupvit_jax.typing import Array, Float, Int, Params

def resize_bilinear(
    maps: Float[Array, "B h w C"], size: tuple[int, int]
) -> Float[Array, "B H W C"]:
    """Bilinear resize with half-pixel centres, not antialiased (PyTorch's `align_corners=False`)."""
    shape = (maps.shape[0], *size, maps.shape[3])
    return jax.image.resize(maps, shape, "bilinear", antialias=False)


def pixel_groups(
    assignments: Sequence[Float[Array, "B _ _"]], size: tuple[int, int], patch_size: int
) -> Int[Array, "B H W"]:
    """Returns the last grouping stage's group of every pixel.

    The soft assignments of all stages are multiplied, resized to the pixels, and each pixel takes
    its likeliest group.

    Args:
      assignments: for each grouping stage in order, [B, groups, segments].
      size: height and width of the images.
      patch_size: side of a patch; the encoder pads the images to multiples of it.
    """
    of_patch = assignments[0]
    for assignment in assignments[1:]:
        of_patch = jnp.einsum(
            "bhg,bgl->bhl", assignment, of_patch, precision=jax.lax.Precision.HIGHEST
        )
    (H, W), p = size, patch_size
    grid = (-(-H // p), -(-W // p))
    maps = jnp.moveaxis(of_patch, 1, 2).reshape(of_patch.shape[0], *grid, -1)
    maps = resize_bilinear(maps.astype(jnp.float32), (grid[0] * p, grid[1] * p))
    return maps[:, :H, :W].argmax(-1)


def group_scores(
    groups: Float[Array, "B G D"],
    image: Float[Array, "B D"],
    text: Float[Array, "N D"],
    logit_scale: Float[Array, ""],
    num_kept: int = 5,
) -> Float[Array, "B G N"]:
    """Returns how much each group is of each class: `softmax(kept affinity) * softmax(affinity)`.

    Only the classes that the whole image likes best are kept; the others score 0.

    Args:
      groups: embeddings of the segments, not normalised.
      image: embedding of the whole window, not normalised.
      text: normalised class embeddings.
      logit_scale: logarithm of the inverse temperature.
      num_kept: number of classes kept.
    """
    highest = jax.lax.Precision.HIGHEST
    affinity = jnp.matmul(l2_normalize(groups), text.T, precision=highest)
    affinity = affinity * clipped_scale(logit_scale)
    liking = jnp.matmul(l2_normalize(image), text.T, precision=highest)
    _, best = jax.lax.top_k(liking, min(num_kept, text.shape[0]))
    kept = jax.nn.one_hot(best, text.shape[0], dtype=bool).any(axis=1)
    masked = jnp.where(kept[:, None], affinity, -jnp.inf)
    return jax.nn.softmax(masked, axis=-1) * jax.nn.softmax(affinity, axis=-1)


def add_background(
    scores: Float[Array, "B H W N"], group_scores: Float[Array, "B G N"], threshold: float
) -> Float[Array, "B H W M"]:
    """Puts the background's score before the classes': 1 where no class scores enough, else 0.

    Enough is `threshold`, or the window's best score of any group where that is less.
    """
    enough = jnp.minimum(threshold, group_scores.max(axis=(1, 2)))
    background = scores.max(axis=-1) < enough[:, None, None]
    return jnp.concatenate([background[..., None].astype(scores.dtype), scores], axis=-1)


def window_scores(
    model: TwoTower,
    variables: Params,
    images: Float[Array, "B H W 3"],
    text: Float[Array, "N D"],
    *,
    background_threshold: float | None = None,
    num_kept: int = 5,
) -> Float[Array, "B H W M"]:
    """Returns every pixel's score of every class; with a threshold, background comes first.

    Args:
      model: the two towers.
      variables: the model's parameters and statistics.
      images: a batch of windows, normalised.
      text: normalised class embeddings.
      background_threshold: None where the classes have no background.
      num_kept: number of classes kept in each window.
    """
    image, features = model.apply(variables, images, method="encode_image")
    groups = model.apply(variables, features.segments, method="project_groups")
    logit_scale = variables["params"]["logit_scale"]
    of_group = group_scores(groups, image, text, logit_scale, num_kept)
    patch_size = model.image_encoder.patch_size
    of_pixel = pixel_groups(features.assignments, images.shape[1:3], patch_size)
    scores = jax.vmap(lambda rows, index: rows[index])(of_group, of_pixel)
    if background_threshold is None:
        return scores
    return add_background(scores, of_group, background_threshold)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Returns where windows begin along an axis; the last one is flush with the border."""
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


def sliding_scores(
    model: TwoTower,
    variables: Params,
    images: Float[Array, "B H W 3"],
    text: Float[Array, "N D"],
    *,
    window: int,
    stride: int,
    background_threshold: float | None = None,
    num_kept: int = 5,
) -> Float[Array, "B H W M"]:
    """Averages `window_scores` over windows of `window` pixels, `stride` apart.

    All windows of all images go through the encoder as one batch. An image that is smaller than
    the window along an axis makes the window smaller.

    Args:
      model, variables, images, text, background_threshold, num_kept: see `window_scores`.
      window: side of a window in pixels.
      stride: distance between windows in pixels.
    """
    H, W = images.shape[1:3]
    h, w = min(window, H), min(window, W)
    corners = [(y, x) for y in window_starts(H, h, stride) for x in window_starts(W, w, stride)]
    crops = jnp.concatenate([images[:, y : y + h, x : x + w] for y, x in corners])
    scores = window_scores(
        model,
        variables,
        crops,
        text,
        background_threshold=background_threshold,
        num_kept=num_kept,
    )
    total = jnp.zeros((images.shape[0], H, W, scores.shape[-1]))
    count = np.zeros((H, W, 1), np.float32)
    for (y, x), part in zip(corners, jnp.split(scores, len(corners)), strict=True):
        total = total.at[:, y : y + h, x : x + w].add(part)
        count[y : y + h, x : x + w] += 1
    return total / count
