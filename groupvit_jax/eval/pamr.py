"""Pixel-adaptive mask refinement (PAMR): scores diffuse between pixels of similar colour.

Araslanov and Roth, "Single-Stage Semantic Segmentation from Image Labels", CVPR 2020, the section
on PAMR: in each iteration, every pixel takes the mean of its neighbours' scores,

    m_i <- sum over j in N(i) of a_ij m_j,    a_i = softmax over j of k_ij,
    k_ij = -mean over colours of |x_i - x_j| / (0.1 sigma_i),

where N(i) is the 8 neighbours of i at each of several dilations, and sigma_i the standard
deviation of the intensities around i.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from groupvit_jax.typing import Array, Float, Int

DILATIONS = (1, 2, 4, 8, 12, 24)
_SENSITIVITY = 0.1
_EPSILON = 1e-8
_RING = np.array([(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)], np.int32)


def refine(
    scores: Float[Array, "B H W N"],
    images: Float[Array, "B H W 3"],
    num_iterations: int = 10,
    dilations: Sequence[int] = DILATIONS,
    size: Int[Array, " 2"] | None = None,
) -> Float[Array, "B H W N"]:
    """Refine class scores along image edges.

    Images and scores are extended beyond the borders by repeating the outermost pixels. Memory: one
    number per pixel and neighbour (48 neighbours with the default dilations).

    Args:
      scores: scores of every class at every pixel, at any scale.
      images: intensities at any scale; only their ratio to the local deviation matters.
      num_iterations: number of averaging steps.
      dilations: distances to the neighbours, in pixels.
      size: height and width of the images within arrays padded at the bottom and right (images by
        repeating their outermost pixels); by default the whole arrays.

    Returns:
      The refined scores, weighted means of the scores around each pixel.
    """
    # [K, 2], eight for each dilation.
    offsets = jnp.asarray(np.concatenate([d * _RING for d in dilations]))
    affinities = _affinities(images.astype(jnp.float32), offsets, max(dilations))

    def average(_: object, scores: Float[Array, "B H W N"]) -> Float[Array, "B H W N"]:
        shifted = _shifts(_repeat_borders(scores, size), max(dilations))

        def add(total, neighbour):
            offset, affinity = neighbour
            return total + affinity[..., None] * shifted(offset), None

        # One neighbour after another: all at once would hold 48 copies of the scores.
        return jax.lax.scan(add, jnp.zeros_like(scores), (offsets, affinities))[0]

    return jax.lax.fori_loop(0, num_iterations, average, scores)


def _repeat_borders(
    maps: Float[Array, "B H W C"], size: Int[Array, " 2"] | None
) -> Float[Array, "B H W C"]:
    """Replace the padding by the outermost values within `size`."""
    if size is None:
        return maps
    rows = jnp.minimum(jnp.arange(maps.shape[1]), size[0] - 1)
    columns = jnp.minimum(jnp.arange(maps.shape[2]), size[1] - 1)
    return maps[:, rows][:, :, columns]


def _affinities(
    images: Float[Array, "B H W 3"], offsets: Int[Array, "K 2"], margin: int
) -> Float[Array, "K B H W"]:
    """Return the weight of each neighbour in each pixel's next score."""
    shifted = _shifts(images, margin)
    deviation = _local_deviation(images, shifted, offsets)

    def kernel(offset: Int[Array, " 2"]) -> Float[Array, "B H W"]:
        distance = jnp.abs(images - shifted(offset))
        return -(distance / (_EPSILON + _SENSITIVITY * deviation)).mean(-1)

    return jax.nn.softmax(jax.lax.map(kernel, offsets), axis=0)  # [K, B, H, W]


def _local_deviation(
    images: Float[Array, "B H W 3"],
    shifted: Callable[[Array], Array],
    offsets: Int[Array, "K 2"],
) -> Float[Array, "B H W 3"]:
    """Return each channel's sample standard deviation over the 3 x 3 windows of all dilations.

    The central pixel counts once per window. Differences from it are summed, which avoids
    cancellation because it is one of the values.
    """

    def add(sums, offset):
        difference = shifted(offset) - images
        return (sums[0] + difference, sums[1] + difference**2), None

    start = (jnp.zeros_like(images), jnp.zeros_like(images))
    (total, squares), _ = jax.lax.scan(add, start, offsets)
    count = len(offsets) // len(_RING) * (len(_RING) + 1)
    # Variance from differences d: (sum d² - (sum d)² / n) / (n - 1), which rounding may make < 0.
    return jnp.sqrt(jnp.maximum(squares - total**2 / count, 0) / (count - 1))


def _shifts(maps: Float[Array, "B H W C"], margin: int) -> Callable[[Array], Array]:
    """Return a function that gathers every pixel's neighbour at an offset within the margin."""
    padded = jnp.pad(maps, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="edge")

    def shifted(offset: Int[Array, " 2"]) -> Float[Array, "B H W C"]:
        start = (0, margin + offset[0], margin + offset[1], 0)
        return jax.lax.dynamic_slice(padded, start, maps.shape)

    return shifted
