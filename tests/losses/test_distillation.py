import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from groupvit_jax import losses, parallel
from tests.losses.differences import central_differences
from tests.losses.test_contrastive import mesh_of

B, D = 16, 6


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def reference(student, teacher):
    student, teacher = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (student, teacher))
    centre, total = teacher.mean(axis=0), 0.0
    for own, other in zip(student, teacher, strict=True):
        total -= softmax((other - centre) / 0.04) @ np.log(softmax(own / 0.1))
    return total / B


@pytest.mark.parametrize("num_devices", [1, 8])
def test_value_and_gradient_are_those_of_the_global_batch(num_devices):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, B, D))
    by_row = NamedSharding(mesh_of(num_devices), PartitionSpec(parallel.BATCH_AXES))
    given = [jax.device_put(jnp.float32(x), by_row) for x in (student, teacher)]
    compute = jax.jit(jax.value_and_grad(losses.distillation_loss, argnums=(0, 1), has_aux=True))
    (value, metrics), (gradient, of_teacher) = compute(*given)
    np.testing.assert_allclose(value, reference(student, teacher), rtol=1e-5)
    assert not np.any(of_teacher)
    [wanted] = central_differences(lambda student: reference(student, teacher), [student])
    np.testing.assert_allclose(gradient, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert 0 < metrics["target_entropy"] < 1


def test_images_that_are_all_alike_teach_nothing():
    student, teacher = jnp.eye(D), jnp.ones((D, D))
    _, metrics = losses.distillation_loss(student, teacher)
    np.testing.assert_allclose(metrics["target_entropy"], 1, rtol=1e-6)
