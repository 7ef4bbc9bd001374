"""The published model with random weights, for benchmarks that need no trained ones."""

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
