import jax
import jax.numpy as jnp
import pytest

from configs import tiny
from groupvit_jax.models import build_model


@pytest.fixture(scope="session")
def config():
    return tiny.get_config().model


@pytest.fixture(scope="session")
def model(config):
    return build_model(config)


@pytest.fixture(scope="session")
def inputs(config):
    key = jax.random.key(1)
    images = jax.random.normal(key, (3, config.image.image_size, config.image.image_size, 3))
    text = jax.random.randint(key, (3, 40), 1, 400)
    ends = jnp.array([9, 15, 20, 33])
    text = text.at[:, ends].set(config.text.end_of_text_id).at[:, 34:].set(0)
    return images, text, jnp.tile(ends, (3, 1))


@pytest.fixture(scope="session")
def variables(model, inputs):
    return jax.jit(model.init)(jax.random.key(0), *inputs)


@pytest.fixture(scope="session")
def perturbed(variables):
    """Variables whose every leaf is random, so that no zero or one hides a mistake."""
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    noisy = [
        x + 0.1 * jnp.abs(jax.random.normal(k, x.shape)) for x, k in zip(leaves, keys, strict=True)
    ]
    return tree.unflatten(noisy)
