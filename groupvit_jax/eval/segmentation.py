"""Zero-shot segmentation on the device: groups take classes, pixels take groups.

Three pure functions, each jitted by its caller: `encode_windows` runs the image tower on a batch of
windows, whichever images they are of; `class_scores` compares their groups with the classes;
`segment` joins the windows of one image. Between them only few numbers of a window remain: the soft
groups of every patch and the groups' best classes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from groupvit_jax.eval.encoding import encode_images, project_groups
from groupvit_jax.eval.pamr import refine
from groupvit_jax.eval.protocol import Protocol
from groupvit_jax.eval.windows import Resampling
from groupvit_jax.losses import clipped_scale, l2_normalize
from groupvit_jax.models.grouping import group_maps, resize_maps
from groupvit_jax.models.preprocess import normalize
from groupvit_jax.models.two_tower import TwoTower
from groupvit_jax.typing import Array, Float, Int, Params, UInt8

_HIGHEST = jax.lax.Precision.HIGHEST


class WindowFeatures(NamedTuple):
    """What the towers give for a batch of windows, whatever the classes.

    Attributes:
      image: joint embeddings of the windows, not normalised.
      groups: joint embeddings of the last stage's segments, not normalised.
      maps: for each grouping stage in order, how much every patch is of every group.
    """

    image: Float[Array, "B D"]
    groups: Float[Array, "B G D"]
    maps: tuple[Float[Array, "B h w _"], ...]


class ImageWindows(NamedTuple):
    """The windows of one image and where they belong.

    Attributes:
      maps: how much every patch of each window is of every group of the last stage.
      scores: of each window's groups, for the same K classes in all windows.
      corners: where the windows begin on the canvas, which holds the image at its top left.
      rows: table that resizes the canvas to the original height.
      columns: table that resizes the canvas to the original width.
      size: height and width of the image on the canvas.
      pixels: the canvas, needed only where the protocol refines scores by it.
    """

    maps: Float[Array, "V h w G"]
    scores: Float[Array, "V G K"]
    corners: Int[Array, "V 2"]
    rows: Resampling
    columns: Resampling
    size: Int[Array, " 2"]
    pixels: UInt8[Array, "H W 3"] | None


def class_scores(
    image: Float[Array, "B D"],
    groups: Float[Array, "B G D"],
    text: Float[Array, "N D"],
    logit_scale: Float[Array, ""],
    num_kept: int,
) -> tuple[Int[Array, "B K"], Float[Array, "B G K"]]:
    """Returns the kept classes, and `softmax(kept affinity) * softmax(affinity)` of each group.

    Args:
      image: embedding of the whole window, not normalised.
      groups: embeddings of the segments, not normalised.
      text: normalised class embeddings.
      logit_scale: logarithm of the inverse temperature.
      num_kept: number of classes that are kept, those that the whole window likes best.
    """
    affinity = jnp.matmul(l2_normalize(groups), text.T, precision=_HIGHEST)
    affinity = affinity * clipped_scale(logit_scale)
    liking = jnp.matmul(l2_normalize(image), text.T, precision=_HIGHEST)
    _, classes = jax.lax.top_k(liking, min(num_kept, text.shape[0]))

    def keep(values: Float[Array, "B G N"]) -> Float[Array, "B G K"]:
        return jnp.take_along_axis(values, classes[:, None], axis=-1)

    return classes, jax.nn.softmax(keep(affinity)) * keep(jax.nn.softmax(affinity))


def encode_windows(
    model: TwoTower, variables: Params, windows: UInt8[Array, "B H W 3"]
) -> WindowFeatures:
    """Runs the image tower once over a batch of windows of one size.

    Args:
      model: the two towers.
      variables: the model's parameters and statistics.
      windows: pixels; the encoder pads them to multiples of its patches.
    """
    image, features = encode_images(model, variables, normalize(windows))
    groups = project_groups(model, variables, features.segments)
    (H, W), p = windows.shape[1:3], model.image_encoder.patch_size
    maps = group_maps(features.assignments, (-(-H // p), -(-W // p)))
    return WindowFeatures(image, groups, maps)


def pixel_groups(
    maps: Float[Array, "B h w G"], size: tuple[int, int], patch_size: int
) -> Int[Array, "B H W"]:
    """Returns the likeliest group of every pixel: maps resized bilinearly, then the argmax.

    Args:
      maps: how much every patch is of every group.
      size: height and width of the windows.
      patch_size: side of a patch; padding beyond `size` is cut off.
    """
    return resize_maps(maps, size, patch_size).argmax(-1)


def add_background(scores: Float[Array, "H W K"], threshold: Array) -> Float[Array, "H W M"]:
    """Puts the background's score before the classes': 1 where none reaches the threshold, or 0."""
    background = scores.max(axis=-1, keepdims=True) < threshold
    return jnp.concatenate([background.astype(scores.dtype), scores], axis=-1)


def join_windows(
    groups: Int[Array, "V H W"] | Float[Array, "V H W G"],
    scores: Float[Array, "V G K"],
    corners: Int[Array, "V 2"],
    canvas: tuple[int, int],
    protocol: Protocol,
) -> Float[Array, "h w M"]:
    """Returns every pixel's score of every class, averaged over the windows that hold it.

    Args:
      groups: of every pixel of each window of an image: its one, or how much it is of each.
      scores: of each window's groups, for the same K classes in all windows.
      corners: where the windows begin.
      canvas: height and width of what is returned; 0 beyond the image.
      protocol: says whether the background comes first.
    """
    threshold = protocol.background_threshold
    per_window = threshold is not None and protocol.background_rule == "window"

    def add(total, window):
        index, of_group, (y, x) = window
        if index.ndim == 2:
            part = of_group[index]
        else:
            part = jnp.matmul(index, of_group, precision=_HIGHEST)
        if per_window:
            part = add_background(part, jnp.minimum(jnp.asarray(threshold), of_group.max()))
        part = jnp.concatenate([part, jnp.ones_like(part[..., :1])], axis=-1)
        here = jax.lax.dynamic_slice(total, (y, x, 0), part.shape)
        return jax.lax.dynamic_update_slice(total, here + part, (y, x, 0)), None

    channels = scores.shape[-1] + per_window
    total, _ = jax.lax.scan(add, jnp.zeros((*canvas, channels + 1)), (groups, scores, corners))
    mean = total[..., :channels] / jnp.maximum(total[..., channels:], 1)
    if threshold is None or per_window:
        return mean
    return jnp.concatenate([jnp.full((*canvas, 1), threshold), mean], axis=-1)


def resample(
    maps: Float[Array, "h w C"], rows: Resampling, columns: Resampling
) -> Float[Array, "H W C"]:
    """Resizes bilinearly by tables (see `windows.resampling`)."""

    def blend(lines: Array, table: Resampling, axis: int) -> Array:
        weight = jnp.expand_dims(table.weight, (1 - axis, 2))
        lower, upper = (jnp.take(lines, index, axis) for index in table[:2])
        return lower + (upper - lower) * weight

    return blend(blend(maps, rows, 0), columns, 1)


def segment(
    windows: ImageWindows,
    *,
    window: tuple[int, int],
    canvas: tuple[int, int],
    patch_size: int,
    protocol: Protocol,
    mixture: bool = False,
) -> Float[Array, "H W M"]:
    """Returns the scores of the original image's pixels; the class is their argmax.

    Args:
      windows: of one image.
      window: height and width of a window.
      canvas: height and width of the canvas.
      patch_size: side of a patch.
      protocol: the knobs.
      mixture: a pixel scores as its groups do, each by its share, not as its likeliest group.
    """
    groups = (resize_maps if mixture else pixel_groups)(windows.maps, window, patch_size)
    scores = join_windows(groups, windows.scores, windows.corners, canvas, protocol)
    if protocol.pamr_iterations:
        assert windows.pixels is not None
        scores = refine(
            scores[None],
            windows.pixels[None].astype(jnp.float32),
            protocol.pamr_iterations,
            protocol.pamr_dilations,
            windows.size,
        )[0]
    return resample(scores, windows.rows, windows.columns)
