"""Where a step's kernel runs: on every device, over its own images and heads."""

import jax
import jax.numpy as jnp
import numpy as np

from groupvit_jax import parallel
from groupvit_jax.models import build_model, fused_attention
from groupvit_jax.models.layers import attend
from groupvit_jax.train import state as state_lib
from groupvit_jax.train.forward import on_mesh
from tests.bounds import nudged
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
        placed = on_mesh(model, mesh, fused_attention=fused)

        def loss(params):
            embedding = placed.apply(
                {"params": params}, images, method=lambda m, x: m.image_encoder(x).embedding
            )
            return jnp.sin(embedding).sum(), embedding

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    monkeypatch.setattr(fused_attention, "KERNELS", {"cpu": kernel})
    shapes = state_lib.batch_shapes(config)
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
