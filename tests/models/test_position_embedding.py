import jax.numpy as jnp
import numpy as np
import pytest

from groupvit_jax.models.position_embedding import (
    bicubic_weights,
    resize_position_embedding,
    sincos_position_embedding,
)
from tests.bounds import assert_within_roundings


@pytest.mark.parametrize(("old", "new"), [((4, 4), (7, 3)), ((14, 14), (28, 28)), ((5, 3), (2, 6))])
def test_resizing_agrees_with_pytorch(old, new):
    torch = pytest.importorskip("torch")
    table = np.random.default_rng(0).normal(size=(1, old[0] * old[1], 6)).astype(np.float32)
    image = torch.from_numpy(table.reshape(1, *old, 6)).double().permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(image, size=new, mode="bicubic", align_corners=False)
    expected = resized.permute(0, 2, 3, 1).reshape(1, -1, 6).numpy()
    ours = resize_position_embedding(jnp.asarray(table), old, new)
    rows, columns = (np.abs(bicubic_weights(*sizes)) for sizes in zip(old, new, strict=True))
    grid = np.abs(table).reshape(*old, 6)
    magnitude = np.einsum("yh,xw,hwc->yxc", rows, columns, grid).reshape(expected.shape)
    # Two weights are rounded, two products, and two sums of four terms.
    assert_within_roundings(ours, expected, magnitude, 2 + 2 + 2 * 4)


def test_resizing_to_the_same_grid_changes_nothing():
    table = jnp.arange(24.0).reshape(1, 6, 4)
    assert resize_position_embedding(table, (2, 3), (2, 3)) is table


def test_bicubic_weights_at_double_size():
    # At a quarter of a pixel from a centre, Keys' kernel with a = -0.75.
    np.testing.assert_allclose(bicubic_weights(8, 16).sum(1), 1, atol=1e-6)
    expected = [-0.10546875, 0.87890625, 0.26171875, -0.03515625]
    np.testing.assert_allclose(bicubic_weights(8, 16)[7, 2:6][::1], expected, atol=1e-6)


def test_sincos_positions_are_distinct_and_bounded():
    table = sincos_position_embedding((3, 4), 8)[0]
    assert table.shape == (12, 8)
    assert len(np.unique(table.round(5), axis=0)) == 12
    assert np.abs(table).max() <= 1
    np.testing.assert_array_equal(table[0], [0, 0, 1, 1, 0, 0, 1, 1])


def test_sincos_needs_a_multiple_of_four():
    with pytest.raises(ValueError, match="6 channels found, expected a multiple of 4"):
        sincos_position_embedding((2, 2), 6)
