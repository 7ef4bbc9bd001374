"""Random weights, for benchmarks that need no trained ones."""

import jax
import jax.numpy as jnp

from configs import base
from groupvit_jax.data.text.vocabulary import CLIP
from groupvit_jax.interop.pretrained import Pretrained
from groupvit_jax.models import build_model


def random_pretrained() -> Pretrained:
    """Return groupvit-small in float32."""
    config = base.get_config().model
    config.dtype = "float32"
    text = jnp.zeros((1, 77), jnp.int32), jnp.zeros((1, 1), jnp.int32)
    initialise = jax.jit(build_model(config).init)
    return Pretrained(
        config, initialise(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), *text), CLIP
    )


def random_array(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Return an array of a shape, type and sharding, random where it holds floats."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.device_put(jax.random.key(0), leaf.sharding)
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), leaf.sharding)
    values = jax.random.normal(jax.random.key(leaf.size), leaf.shape, leaf.dtype)
    return jax.device_put(values, leaf.sharding)  # zeros would compress to nothing
