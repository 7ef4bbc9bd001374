"""Steps on several meshes, each from the same state.

Whole runs agree less and less: where a gradient is mere rounding, Adam, which divides by its size,
moves the parameter by a whole step in any direction.
"""

import jax
import jax.numpy as jnp
import numpy as np

from tests.bounds import DRAWS, UNIT_ROUNDOFF, largest_changes, nudged

# Of a last sum, over up to 2^14 pixels, tokens or logits: the roundings are independent, so that
# their number counts by its root. The parameters have no part in it.
SUM_ROUNDINGS = 2**7


def record(run, batches):
    """Run steps; keep the state before each, its metrics and how far rounding may move them.

    Args:
      run: has `state`, `shardings`, and takes a step of a batch, which donates the state.
      batches: one for each step.

    Returns:
      states, metrics, bounds: lists over the steps. A bound is the change under moves of every
      parameter by 16 units in the last place, large where a segment nearly goes to another group.
    """
    states, history, bounds = [], [], []
    for batch in batches:
        states.append(jax.tree.map(jnp.copy, run.state))
        moved = []
        for seed, units in DRAWS:
            params = nudged(states[-1].params, units, seed)
            run.state = place(run, states[-1].replace(params=params))
            moved.append(run(batch))
        run.state = place(run, states[-1])
        history.append(run(batch))
        bounds.append(largest_changes(history[-1], *moved))
    return states, history, bounds


def place(run, state):
    """Copy a state to the run's devices."""
    return jax.device_put(jax.tree.map(jnp.copy, state), run.shardings)


def assert_steps_agree(found, history, bounds, names):
    """Compare the metrics of each step; most steps must have bounds that tell something."""
    rtol = SUM_ROUNDINGS * UNIT_ROUNDOFF
    for name in names:
        for step, (here, there, bound) in enumerate(zip(found, history, bounds, strict=True)):
            message = f"{name} of step {step}"
            np.testing.assert_allclose(here[name], there[name], rtol, bound[name], err_msg=message)
        assert np.median([bound[name] for bound in bounds]) < 1e-4


def assert_leaves_agree(found, expected, moved, largest):
    """Compare trees of gradients leaf by leaf.

    Args:
      found: what another order of the same sums gave.
      expected: the tree it is compared with.
      moved: that tree again, from parameters moved by 16 and by -16 units in the last place.
      largest: the largest gradient. Every gradient sums terms of about this size; one that is zero
        but for rounding, such as that of a bias before BatchNorm, sums up to 2^14 of them.
    """
    rtol, relative = SUM_ROUNDINGS * UNIT_ROUNDOFF, []
    leaves = jax.tree_util.tree_leaves_with_path(expected)
    bounds = jax.tree.leaves(largest_changes(expected, *moved))
    for (path, wanted), value, bound in zip(leaves, jax.tree.leaves(found), bounds, strict=True):
        name, size = jax.tree_util.keystr(path, simple=True, separator="/"), np.abs(wanted).max()
        is_zero = size <= rtol * largest
        floor = rtol * largest if is_zero else 16 * UNIT_ROUNDOFF * largest
        atol = max(bound, floor, rtol * size)
        np.testing.assert_allclose(value, wanted, rtol=0, atol=atol, err_msg=name)
        if not is_zero:
            relative.append(atol / size)
    assert np.median(relative) < 1e-3  # most bounds tell something
