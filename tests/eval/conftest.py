import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from configs import tiny
from groupvit_jax.data.text.tokenizers import ClipTokenizer
from groupvit_jax.eval.encoding import Encoder
from groupvit_jax.models import build_model
from groupvit_jax.parallel import AXES
from tests.devices import first_devices


def make_mesh(num_devices):
    devices = first_devices(num_devices)
    return jax.make_mesh(
        (num_devices, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices
    )


@pytest.fixture(scope="session")
def model():
    return build_model(tiny.get_config().model)


def random_variables(model):
    """Random leaves, so that groups differ and embeddings spread."""
    images, text = jnp.zeros((2, 32, 32, 3)), jnp.full((2, 32), 49407)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images, text, text[:, :1])
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        scale = 3.0 * leaf.shape[0] ** -0.5 if len(leaf.shape) > 1 else 0.3
        value = rng.normal(0, scale, leaf.shape).astype(np.float32)
        positive = "var" in name or "'scale'" in name
        return jnp.asarray(np.abs(value) + 0.5 if positive else value)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="session")
def variables(model):
    return random_variables(model)


@pytest.fixture(scope="session", params=[1, 8], ids=["1 device", "8 devices"])
def any_encoder(request, model):
    return Encoder(model, ClipTokenizer(32), make_mesh(request.param))


@pytest.fixture(scope="session")
def encoder(model):
    return Encoder(model, ClipTokenizer(32), make_mesh(1))
