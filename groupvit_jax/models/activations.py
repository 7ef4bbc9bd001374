"""Activations of the blocks' MLPs."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from groupvit_jax.typing import Array, Float


@jax.custom_vjp
def gelu(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """Compute the exact GELU, with the error function, in float32.

    The backward pass recomputes everything from `x`: JAX's would store the float32 intermediates of
    the widest activation of a block.
    """
    return _gelu_and_slope(x)[0]


def _gelu_and_slope(x: Array) -> tuple[Array, Array]:
    wide = x.astype(jnp.float32)
    cdf = 0.5 + 0.5 * jax.lax.erf(wide * 0.5**0.5)
    # d/dx (x Phi(x)) = Phi(x) + x phi(x), with the normal distribution's Phi and its density phi.
    slope = cdf + wide * jnp.exp(-0.5 * wide * wide) * (2 * jnp.pi) ** -0.5
    return (wide * cdf).astype(x.dtype), slope


def _gelu_backward(x: Array, gradient: Array) -> tuple[Array]:
    return ((gradient * _gelu_and_slope(x)[1]).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


def quick_gelu(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """Compute CLIP's approximation of GELU, `x sigmoid(1.702 x)`."""
    return x * nn.sigmoid(1.702 * x)


def gelu_tanh(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """Compute the GELU with tanh in place of the error function, as SigLIP has it."""
    return nn.gelu(x, approximate=True)


# By the value of `config.model.image.activation`.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "quick_gelu": quick_gelu,
    "gelu_tanh": gelu_tanh,
}
