"""Gradients of references by central differences."""

import jax
import numpy as np


def central_differences(value_of, arguments, step=1e-6):
    """Return the gradient of `value_of(*arguments)` in float64, a tree like the arguments."""
    flat, tree = jax.tree.flatten(jax.tree.map(lambda x: np.array(x, np.float64), arguments))
    gradients = [np.zeros_like(leaf) for leaf in flat]
    for leaf, gradient in zip(flat, gradients, strict=True):
        for place in np.ndindex(leaf.shape):
            value, ends = leaf[place], []
            for move in (step, -step):
                leaf[place] = value + move
                ends.append(value_of(*tree.unflatten(flat)))
            leaf[place] = value
            gradient[place] = (ends[0] - ends[1]) / (2 * step)
    return tree.unflatten(gradients)
