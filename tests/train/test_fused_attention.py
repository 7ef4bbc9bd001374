"""Where a step's kernel runs: on every device, over its own images and heads."""

import jax
import jax.numpy as jnp
import numpy as np

from groupvit_jax import parallel
from groupvit_jax.models import build_model, fused_attention
from groupvit_jax.models.layers import attend
from groupvit_jax.train.forward import on_mesh
from groupvit_jax.train.grad_cache import in_micro_batches
from groupvit_jax.train.tasks import task_of
from tests.bounds import UNIT_ROUNDOFF, nudged
from tests.devices import first_devices
from tests.train import agreement
from tests.train.test_step import MESHES, random_variables, tiny_config


def test_every_device_attends_for_its_own_images_and_heads(monkeypatch):
    config = tiny_config()
    config.model.scan_layers = True
    mesh = parallel.make_mesh(MESHES["tensor"])
    model, seen = build_model(config.model), []

    def kernel(query, key, value):
        seen.append(query.shape)
        return attend(query, key, value)

    def embed(fused, params):
        placed, has_kernels = on_mesh(model, mesh, fused_attention=fused)
        assert has_kernels == fused

        def loss(params):
            embedding = placed.apply(
                {"params": params}, images, method=lambda m, x: m.image_encoder(x).embedding
            )
            return jnp.sin(embedding).sum(), embedding

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    monkeypatch.setattr(fused_attention, "KERNELS", {"cpu": kernel})
    shapes = task_of(config).batch_shapes(config)
    params = random_variables(model, shapes)["params"]
    images = np.random.default_rng(0).normal(size=(16, 32, 32, 3)).astype(np.float32)
    images = parallel.to_global_batch(mesh, {"image": images})["image"]
    expected = embed(fused=False, params=params)
    moved = [embed(fused=False, params=nudged(params, units)) for units in (16, -16)]
    assert not seen
    found = embed(fused=True, params=params)
    # 4 x 2 devices; 16 images, 2 heads of 16 channels, 16 patches and 8 group tokens.
    assert (16 // 4, 2 // 2, 16 + 8, 16) in seen
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    agreement.assert_leaves_agree(found, expected, moved, largest)


def test_micro_batches_attend_by_the_kernel(monkeypatch):
    """The gradients of parameters, too: they are summed over the devices where `shard_map` ends."""
    calls = []

    def kernel(query, key, value):
        calls.append(query.shape)
        return attend(query, key, value)

    monkeypatch.setattr(fused_attention, "KERNELS", {"cpu": kernel})
    mesh = parallel.make_mesh({"data": 2, "fsdp": 2, "tensor": 1}, first_devices(4))
    attention_fn = fused_attention.attention_fn(mesh, within_shard_map=True)
    x, w = jax.random.normal(jax.random.key(0), (16, 2, 5, 4)), jnp.linspace(0.5, 1.5, 4)

    def encode(attention_fn):
        return lambda w, keys, x: attention_fn(x * w, x, x * w)

    def gradient(encode):
        return jax.jit(jax.grad(lambda w: jnp.sin(encode(w, {}, x)).sum()))(w)

    found = gradient(in_micro_batches(encode(attention_fn), 8, mesh, with_kernels=True))
    assert calls[0] == (8 // 4, 2, 5, 4)
    expected = gradient(encode(attend))
    # A sum of 16 x 2 x 5 x 4 terms of about one.
    np.testing.assert_allclose(found, expected, rtol=0, atol=640 * UNIT_ROUNDOFF)


def test_no_kernel_where_micro_batches_leave_the_heads_to_xla(monkeypatch):
    monkeypatch.setattr(fused_attention, "KERNELS", {"cpu": attend})
    mesh = parallel.make_mesh({"data": 2, "fsdp": 1, "tensor": 2}, first_devices(4))
    assert fused_attention.attention_fn(mesh, within_shard_map=True) is None


def test_a_head_too_few_for_the_tensor_shards_is_left_to_xla(monkeypatch):
    def kernel(*_):
        raise AssertionError("called")

    monkeypatch.setattr(fused_attention, "KERNELS", {"cpu": kernel})
    mesh = parallel.make_mesh({"data": 2, "fsdp": 1, "tensor": 2}, first_devices(4))
    x = jax.random.normal(jax.random.key(0), (4, 3, 5, 4))
    found = fused_attention.attention_fn(mesh)(x, x, x)
    np.testing.assert_array_equal(found, attend(x, x, x))
