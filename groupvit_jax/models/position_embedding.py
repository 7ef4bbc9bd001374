"""Position embeddings of a grid of patches: fixed sin-cos, and PyTorch's bicubic resizing."""

import jax.numpy as jnp
import numpy as np

from groupvit_jax.typing import Array, Float


def sincos_position_embedding(grid: tuple[int, int], dim: int) -> Float[np.ndarray, "1 L C"]:
    """Return the fixed 2-D sin-cos embedding of arXiv 2104.02057: half the channels are of x.

    Args:
      grid: rows and columns.
      dim: channels, divisible by 4.

    Raises:
      ValueError: if `dim` isn't divisible by 4.
    """
    if dim % 4:
        raise ValueError(f"{dim} channels found, expected a multiple of 4 for sin-cos positions")
    frequencies = 10000.0 ** -(np.arange(dim // 4) / (dim // 4))
    rows, columns = np.mgrid[: grid[0], : grid[1]].reshape(2, -1, 1)  # [L, 1] each
    x, y = columns * frequencies, rows * frequencies
    table = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
    return table[None].astype(np.float32)


def _cubic(distance: np.ndarray, a: float = -0.75) -> np.ndarray:
    """Keys' cubic convolution kernel; PyTorch takes a = -0.75, `jax.image.resize` -0.5."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((d - 5) * d + 8) * d * a - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def bicubic_weights(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Return the interpolation matrix of an axis: half-pixel centres, borders clamped."""
    centres = (np.arange(new) + 0.5) * (old / new) - 0.5
    taps = np.floor(centres).astype(int)[:, None] + np.arange(-1, 3)  # [new, 4]
    weights = np.zeros((new, old))
    rows = np.broadcast_to(np.arange(new)[:, None], taps.shape)
    # At a border several taps are clamped to one pixel: `add.at` adds them up, `+=` keeps one.
    np.add.at(weights, (rows, taps.clip(0, old - 1)), _cubic(centres[:, None] - taps))
    return weights.astype(np.float32)


def resize_position_embedding(
    embedding: Float[Array, "1 L C"], old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Float[Array, "1 M C"]:
    """Resize as `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)` does.

    Args:
      embedding: one row for each patch, in row-major order of `old_grid`.
      old_grid: rows and columns of the embedding.
      new_grid: rows and columns wanted.
    """
    if old_grid == new_grid:
        return embedding
    table = embedding.reshape(*old_grid, -1)
    rows = bicubic_weights(old_grid[0], new_grid[0])
    columns = bicubic_weights(old_grid[1], new_grid[1])
    # Highest precision: a TPU would multiply in bfloat16, away from PyTorch's values.
    resized = jnp.einsum("yh,xw,hwc->yxc", rows, columns, table, precision="highest")
    return resized.reshape(1, new_grid[0] * new_grid[1], -1)
