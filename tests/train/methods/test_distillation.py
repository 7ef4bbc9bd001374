import jax
import jax.numpy as jnp
import numpy as np
import pytest

from groupvit_jax.models.two_tower import build_model
from groupvit_jax.train.methods import distillation
from tests.train.test_step import MESHES, Run, host_batch, tiny_config


def small_config():
    config = tiny_config()
    config.loss.distill_weight = 1.0
    config.optimizer.ema_decay = 0.9
    return config


@pytest.mark.slow
def test_the_average_teaches_and_is_not_taught():
    config = small_config()
    run = Run(config, MESHES["data"], build_model(config.model))
    before = jax.device_get(run.state.average)
    metrics = run(host_batch(config, 0))
    np.testing.assert_allclose(
        metrics["loss"],
        metrics["global/loss"] + metrics["multi_label/loss"] + metrics["distill/loss"],
        rtol=1e-6,
    )
    assert 0 < metrics["distill/target_entropy"] <= 1
    assert np.isfinite(metrics["gradient_norm"])
    # Another teacher gives other targets: it is not the student who teaches.
    scaled = jax.tree.map(lambda x: 1.5 * x, before["params"])
    state = run.state.replace(average={**run.state.average, "params": scaled})
    run.state = jax.tree.map(jax.device_put, state, run.shardings)
    other = run(host_batch(config, 0))["distill/loss"]
    assert other != metrics["distill/loss"]


def test_the_teacher_sees_whole_images_without_noise():
    config = small_config()
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
