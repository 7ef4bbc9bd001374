import jax
import jax.numpy as jnp
import numpy as np

from groupvit_jax.models.two_tower import build_model
from groupvit_jax.train.methods import distillation
from tests.train.test_step import host_batch, tiny_config


def test_the_teacher_sees_whole_images_without_noise():
    config = tiny_config()
    model = build_model(config.model)
    images = jnp.asarray(host_batch(config, 0)["image"][:2])
    variables = jax.jit(model.init)(
        jax.random.key(0),
        jnp.zeros((1, 32, 32, 3)),
        jnp.zeros((1, 24), int),
        jnp.zeros((1, 1), int),
    )
    teach = jax.jit(
        lambda params: distillation.encode_teacher(model, params, {}, {"image": images})
    )
    embedding = teach(variables["params"])
    joint = distillation.project_teacher(model, variables, embedding)
    mean = (np.asarray(images, np.float32) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    expected, _ = model.apply(variables, jnp.asarray(mean, jnp.float32), method="encode_image")
    np.testing.assert_allclose(joint, expected, rtol=1e-4, atol=1e-5)
