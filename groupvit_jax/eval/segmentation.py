"""Zero-shot segmentation on the device: groups are classified, pixels inherit from their group.

Three pure functions, each jitted by its caller: `encode_windows` runs the image tower on a batch of
windows from any images, `class_scores` compares their groups with the classes, and `segment` joins
the windows of one image. Between these steps, a window is reduced to the soft assignments of its
patches and the scores of its best classes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from groupvit_jax.eval.encoding import encode_images, project_groups
from groupvit_jax.eval.pamr import refine
from groupvit_jax.eval.protocol import Protocol
from groupvit_jax.eval.windows import Resampling
from groupvit_jax.losses import clipped_scale, l2_normalize
from groupvit_jax.models.grouping import group_maps
from groupvit_jax.models.preprocess import normalize
from groupvit_jax.models.two_tower import TwoTower
from groupvit_jax.typing import Array, Bool, Float, Int, Params, UInt8

_HIGHEST = jax.lax.Precision.HIGHEST


class WindowFeatures(NamedTuple):
    """Class-independent features of a batch of windows.

    Attributes:
      image: joint embeddings of the windows, not normalised.
      groups: joint embeddings of the last stage's segments, not normalised.
      maps: soft assignments of patches to groups, one array per grouping stage.
    """

    image: Float[Array, "B D"]
    groups: Float[Array, "B G D"]
    maps: tuple[Float[Array, "B h w _"], ...]


class ImageWindows(NamedTuple):
    """The windows of one image and their positions.

    Attributes:
      maps: soft assignments of each window's patches to the groups of the last stage.
      scores: scores of each window's groups for the same K classes in all windows.
      corners: top left corners of the windows on the canvas, whose top left holds the image.
      stretches: matrices that resize values of patches to the rows and columns of a window.
      window: height and width of the windows, within those rows and columns.
      rows: table that resizes the canvas to the original height.
      columns: table that resizes the canvas to the original width.
      size: height and width of the image on the canvas.
      pixels: the canvas, only for protocols that refine scores.
    """

    maps: Float[Array, "V h w G"]
    scores: Float[Array, "V G K"]
    corners: Int[Array, "V 2"]
    stretches: tuple[Float[Array, "H h"], Float[Array, "W w"]]
    window: Int[Array, " 2"]
    rows: Resampling
    columns: Resampling
    size: Int[Array, " 2"]
    pixels: UInt8[Array, "H W 3"] | None


def cosines(
    image: Float[Array, "*batch D"], text: Float[Array, "N *names D"]
) -> Float[Array, "*batch N"]:
    """Return the similarity with each class, the best of its names.

    Args:
      image: normalised embeddings.
      text: normalised embeddings of classes, or of M names for each class.
    """
    # [*batch, N * M], and below the best of each class's M names.
    flat = jnp.matmul(image, text.reshape(-1, text.shape[-1]).T, precision=_HIGHEST)
    return flat if text.ndim == 2 else flat.reshape(*image.shape[:-1], *text.shape[:2]).max(-1)


def class_scores(
    image: Float[Array, "B D"],
    groups: Float[Array, "B G D"],
    text: Float[Array, "N *names D"],
    logit_scale: Float[Array, ""],
    num_kept: int,
) -> tuple[Int[Array, "B K"], Float[Array, "B G K"]]:
    """Return the kept classes, and `softmax(kept affinity) * softmax(affinity)` of each group.

    Args:
      image: embedding of the whole window, not normalised.
      groups: embeddings of the segments, not normalised.
      text: normalised class embeddings; of a class with several names, the best match counts.
      logit_scale: logarithm of the inverse temperature.
      num_kept: number of classes kept, by similarity to the whole window.
    """
    affinity = cosines(l2_normalize(groups), text) * clipped_scale(logit_scale)  # [B, G, N]
    liking = cosines(l2_normalize(image), text)  # [B, N]
    _, classes = jax.lax.top_k(liking, min(num_kept, text.shape[0]))

    def keep(values: Float[Array, "B G N"]) -> Float[Array, "B G K"]:
        # The same classes for all groups of a window: [B, 1, K].
        return jnp.take_along_axis(values, classes[:, None], axis=-1)

    # Among the kept classes, times among all of them, as published.
    return classes, jax.nn.softmax(keep(affinity)) * keep(jax.nn.softmax(affinity))


def normalized_inside(
    windows: UInt8[Array, "B H W 3"], inside: Int[Array, "B 2"]
) -> Float[Array, "B H W 3"]:
    """Normalise the pixels within the height and width `inside`; zeros beyond, as in training."""
    rows, columns = (jnp.arange(side) for side in windows.shape[1:3])
    # [B, H, W]
    of_image = (rows < inside[:, :1])[:, :, None] & (columns < inside[:, 1:])[:, None]
    return jnp.where(of_image[..., None], normalize(windows), 0)


def encode_windows(
    model: TwoTower,
    variables: Params,
    windows: UInt8[Array, "B H W 3"],
    inside: Int[Array, "B 2"],
) -> WindowFeatures:
    """Run the image tower once over a batch of windows of one shape.

    Args:
      model: the two towers.
      variables: the model's parameters and statistics.
      windows: pixels of whole patches.
      inside: height and width of the image's own pixels.
    """
    image, features = encode_images(model, variables, normalized_inside(windows, inside))
    groups = project_groups(model, variables, features.segments)
    (H, W), p = windows.shape[1:3], model.image_encoder.patch_size
    maps = group_maps(features.assignments, (H // p, W // p))
    return WindowFeatures(image, groups, maps)


def stretch(
    maps: Float[Array, "*batch h w C"], rows: Float[Array, "H h"], columns: Float[Array, "W w"]
) -> Float[Array, "*batch H W C"]:
    """Resize values of patches to pixels by matrices (see `windows.Layout.stretches`)."""
    tall = jnp.einsum("...hwc,Hh->...Hwc", maps, rows, precision=_HIGHEST)
    return jnp.einsum("...hwc,Ww->...hWc", tall, columns, precision=_HIGHEST)


def add_background(scores: Float[Array, "H W K"], threshold: Array) -> Float[Array, "H W M"]:
    """Prepend the background score: 1 where no class reaches the threshold, else 0."""
    background = scores.max(axis=-1, keepdims=True) < threshold
    return jnp.concatenate([background.astype(scores.dtype), scores], axis=-1)


def scores_of_pixels(
    groups: Int[Array, "H W"] | Float[Array, "H W G"], scores: Float[Array, "G K"]
) -> Float[Array, "H W K"]:
    """Return the scores of each pixel's group, or their mean weighted by a soft assignment."""
    if groups.ndim == 2:
        return scores[groups]
    return jnp.matmul(groups, scores, precision=_HIGHEST)


def join_windows(
    groups: Int[Array, "V H W"] | Float[Array, "V _ _ _"],
    scores: Float[Array, "V G K"],
    corners: Int[Array, "V 2"],
    canvas: tuple[int, int],
    protocol: Protocol,
    paint: Callable[[Array, Array], Float[Array, "H W K"]] = scores_of_pixels,
    threshold: Float[Array, ""] | None = None,
    inside: Bool[Array, "H W 1"] | bool = True,
) -> Float[Array, "h w M"]:
    """Return class scores per pixel, averaged over the windows that contain it.

    Args:
      groups: group of every pixel of each window, or its soft assignment; or what `paint` takes.
      scores: scores of each window's groups for the same K classes in all windows.
      corners: top left corners of the windows.
      canvas: height and width of the result; 0 outside the image.
      protocol: determines whether a background score comes first.
      paint: returns the scores of a window's pixels, from its entries of `groups` and `scores`.
      threshold: of the background, in place of the protocol's.
      inside: which pixels of the arrays are the windows' own.
    """
    level = protocol.background_threshold if threshold is None else threshold
    per_window = level is not None and protocol.background_rule == "window"

    def add(total, window):
        of_pixel, of_group, (y, x) = window
        part = paint(of_pixel, of_group)
        if per_window:
            # Lowered to the window's best score: somewhere it shows a class.
            part = add_background(part, jnp.minimum(jnp.asarray(level), of_group.max()))
        # The last channel counts the windows that a pixel is in.
        part = jnp.concatenate([part, jnp.ones_like(part[..., :1])], axis=-1)
        part = jnp.where(inside, part, 0)
        here = jax.lax.dynamic_slice(total, (y, x, 0), part.shape)
        return jax.lax.dynamic_update_slice(total, here + part, (y, x, 0)), None

    channels = scores.shape[-1] + per_window
    total, _ = jax.lax.scan(add, jnp.zeros((*canvas, channels + 1)), (groups, scores, corners))
    # Outside of the image a pixel is in no window, and 0 / 1 keeps it 0.
    mean = total[..., :channels] / jnp.maximum(total[..., channels:], 1)
    if level is None or per_window:
        return mean
    return jnp.concatenate([jnp.full((*canvas, 1), level), mean], axis=-1)


def resample(
    maps: Float[Array, "h w C"], rows: Resampling, columns: Resampling
) -> Float[Array, "H W C"]:
    """Resize bilinearly with tables (see `windows.resampling`)."""

    def blend(lines: Array, table: Resampling, axis: int) -> Array:
        # [H, 1, 1] for rows, [1, W, 1] for columns.
        weight = jnp.expand_dims(table.weight, (1 - axis, 2))
        lower, upper = (jnp.take(lines, index, axis) for index in table[:2])
        return lower + (upper - lower) * weight

    return blend(blend(maps, rows, 0), columns, 1)


def segment(
    windows: ImageWindows,
    *,
    canvas: tuple[int, int],
    patch_size: int,
    protocol: Protocol,
    mixture: bool = False,
    threshold: Float[Array, ""] | None = None,
) -> Float[Array, "H W M"]:
    """Return the scores at the original image's pixels, whose argmax is the class.

    Args:
      windows: the windows of one image.
      canvas: height and width of the canvas.
      patch_size: side of a patch.
      protocol: the settings of the evaluation.
      mixture: weight the scores of all groups by the soft assignment, instead of taking the scores
        of the most probable group.
      threshold: of the background, in place of the protocol's: an array doesn't compile anew.
    """
    of_windows = windows.scores, windows.corners, canvas, protocol
    rows, columns = (jnp.arange(len(matrix)) for matrix in windows.stretches)
    inside = (rows < windows.window[0])[:, None] & (columns < windows.window[1])
    options: dict[str, Any] = {"threshold": threshold, "inside": inside[..., None]}
    if protocol.pamr_iterations and protocol.pamr_place == "window":
        refined = _refine_windows(windows, patch_size, protocol, mixture)
        options["paint"] = lambda maps, _: stretch(maps, *windows.stretches)
        scores = join_windows(refined, *of_windows, **options)
    else:
        maps = stretch(windows.maps, *windows.stretches)
        scores = join_windows(maps if mixture else maps.argmax(-1), *of_windows, **options)
    if protocol.pamr_iterations and protocol.pamr_place == "image":
        assert windows.pixels is not None
        scores = refine(
            scores[None],
            windows.pixels[None].astype(jnp.float32),
            protocol.pamr_iterations,
            protocol.pamr_dilations,
            windows.size,
        )[0]
    return resample(scores, windows.rows, windows.columns)


def _refine_windows(
    windows: ImageWindows,
    patch_size: int,
    protocol: Protocol,
    mixture: bool,
) -> Float[Array, "V h w K"]:
    """Return each window's scores, one per patch, refined along the edges of its pixels.

    The pixels are resized to the patches with aligned corners, as TCL does.
    """
    assert windows.pixels is not None
    pixels = windows.pixels.astype(jnp.float32)
    padded = tuple(len(matrix) for matrix in windows.stretches)
    # In pixels of the window; where it is padded, its outermost pixels are repeated.
    lines = [
        jnp.linspace(0, jnp.maximum(tokens * patch_size, side) - 1, tokens).clip(0, side - 1)
        for tokens, side in zip(windows.maps.shape[1:3], windows.window, strict=True)
    ]
    places = jnp.meshgrid(*lines, indexing="ij")

    def reduced(corner: Int[Array, " 2"]) -> Float[Array, "h w 3"]:
        cut = jax.lax.dynamic_slice(pixels, (corner[0], corner[1], 0), (*padded, 3))
        sample = jax.scipy.ndimage.map_coordinates
        return jax.vmap(lambda c: sample(c, places, 1, "nearest"), 2, 2)(cut)

    # [V, h, w, G] or [V, h, w].
    groups = windows.maps if mixture else windows.maps.argmax(-1)
    return refine(
        jax.vmap(scores_of_pixels)(groups, windows.scores),
        jax.vmap(reduced)(windows.corners),
        protocol.pamr_iterations,
        protocol.pamr_dilations,
    )
