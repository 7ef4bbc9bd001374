"""Bounds that follow from float32 arithmetic, so that they hold on every processor."""

import jax
import jax.numpy as jnp
import numpy as np

UNIT_ROUNDOFF = 2.0**-24  # the largest relative error of one float32 operation
# Seeds and units of `nudged` for a single number. That all four draws change it by less than half
# of their standard deviation has a probability of 2 %; for a single draw it is 38 %.
DRAWS = [(seed, units) for seed in range(4) for units in (16, -16)]


def assert_within_roundings(found, expected, magnitude, roundings, err_msg=""):
    """Assert that sums of float32 terms differ from the exact ones by rounding alone.

    Terms that went through n roundings each add up to the exact sum within n u sum(|terms|), in any
    order and with or without fused multiply-adds (Higham, Accuracy and Stability of Numerical
    Algorithms, section 3.1). A bound relative to the sum itself would ask for more digits than
    float32 has where the terms cancel.

    Args:
      found: the float32 result.
      expected: the exact result.
      magnitude: the sum of the terms' magnitudes, of the same shape.
      roundings: n, or about its square root where the roundings are independent.
      err_msg: names the result.
    """
    error = np.abs(np.asarray(found, np.float64) - expected) / UNIT_ROUNDOFF
    unused = np.asarray(magnitude) == 0
    np.testing.assert_array_equal(error[unused], 0, err_msg=err_msg)
    relative = np.where(unused, 0, error / np.where(unused, 1, magnitude))
    np.testing.assert_allclose(relative, 0, atol=roundings, err_msg=err_msg)


def nudged(tree, units, seed=0):
    """Return the float32 arrays with every number moved by `units` in its last place.

    The change of a result tells how ill-conditioned it is: rounding on the way to it acts like a
    move of about one unit, in whatever order a processor or a number of devices sums. Up or down is
    drawn; `-units` moves all numbers the other way, so that a maximum that is nearly shared goes to
    the other place in one of the two.

    The largest change of many results tells it by one draw. That of a single number is a sum of
    random signs, by chance small: take several draws (`DRAWS`).
    """
    rng = np.random.default_rng(seed)

    def move(x):
        signs = rng.choice(np.array([-1.0, 1.0]), size=np.shape(x))
        return jnp.asarray(np.asarray(x) * (1 + 2 * UNIT_ROUNDOFF * units * signs), jnp.float32)

    return jax.tree.map(move, tree)


def largest_changes(expected, *others):
    """Return for each leaf the largest difference between its first and its other values."""

    def largest(x, *ys):
        return max(np.abs(np.asarray(y, np.float64) - np.asarray(x)).max() for y in ys)

    return jax.tree.map(largest, expected, *others)
