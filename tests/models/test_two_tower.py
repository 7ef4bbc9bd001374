import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from groupvit_jax.models import build_model
from groupvit_jax.models.layers import Mlp

RNGS = {"gumbel": jax.random.key(3), "drop_path": jax.random.key(4)}


def test_groupvit_small_has_the_published_number_of_parameters():
    config = base.get_config().model
    model = build_model(config)
    size = config.image.image_size
    shapes = jax.eval_shape(
        model.init,
        jax.random.key(0),
        jnp.zeros((1, size, size, 3)),
        jnp.zeros((1, 80), int),
        jnp.zeros((1, 2), int),
    )
    published = 55_726_609
    count = sum(np.prod(x.shape, dtype=int) for x in jax.tree.leaves(shapes["params"]))
    assert count == published + 1  # the multi-label loss's own temperature


def starts_uniform(path):
    """PyTorch's default: patch embedding, MLPs of the text tower, linear layers of projectors."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return re.fullmatch(
        r"image_encoder/patch_embed/proj/bias|text_encoder/blocks_\d+/mlp/fc[12]/bias"
        r"|(image|text)_projector/linear_(hidden|out)/bias",
        name,
    )


def test_biases_start_uniform_where_the_published_ones_do(variables):
    for path, bias in jax.tree_util.tree_leaves_with_path(variables["params"]):
        name = jax.tree_util.keystr(path[-1:], simple=True)
        if name == "bias" and not starts_uniform(path):
            np.testing.assert_array_equal(bias, 0)
        elif name == "bias":
            owner = variables["params"]
            for key in path[:-1]:
                owner = owner[key.key]
            limit = np.prod(owner["kernel"].shape[:-1]) ** -0.5
            assert 0.5 * limit < np.abs(bias).max() <= limit
            assert abs(np.mean(bias)) < 0.5 * limit


def test_the_published_model_has_29_uniform_biases():
    model = build_model(base.get_config().model)
    inputs = jnp.zeros((1, 224, 224, 3)), jnp.zeros((1, 80), int), jnp.zeros((1, 2), int)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    assert len(list(filter(starts_uniform, paths))) == 29
    # Measured in a published start: `text_encoder/blocks_0/mlp/fc1` has 0.0365.
    mlp = Mlp(1024, 256, uniform_biases=True)
    params = mlp.init(jax.random.key(0), jnp.zeros((1, 256)))["params"]
    assert np.std(params["fc1"]["bias"]) == pytest.approx(0.0365, rel=0.05)
    assert np.std(params["fc2"]["bias"]) == pytest.approx(1024**-0.5 / 3**0.5, rel=0.1)


def test_both_temperatures_start_at_the_configured_one(variables):
    for name in ("logit_scale", "multi_label_logit_scale"):
        assert np.exp(variables["params"][name]) == pytest.approx(1 / 0.07, rel=1e-5)


def test_a_shared_temperature_is_one_parameter(config, inputs):
    config = config.copy_and_resolve_references()
    config.share_logit_scale = True
    model = build_model(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    assert "logit_scale" in shapes
    assert "multi_label_logit_scale" not in shapes


def test_encoding_apart_equals_encoding_together(model, perturbed, inputs):
    images, text, ends = inputs
    out = jax.jit(model.apply)(perturbed, images, text, ends)

    def apply(method, x):
        return jax.jit(partial(model.apply, method=method))(perturbed, x)

    image, features = apply("encode_image", images)
    np.testing.assert_allclose(image, out.image, rtol=1e-4, atol=1e-5)
    encoded = apply("encode_text", text[:, 16:24])
    np.testing.assert_allclose(encoded, out.text[:, 2], rtol=1e-4, atol=1e-5)
    groups = apply("project_groups", features.segments)
    assert groups.shape == (3, 4, image.shape[1])
    # A segment goes through the image projector as an image's embedding does.
    alone = apply("project_groups", features.embedding[:, None])
    np.testing.assert_allclose(alone[:, 0], out.image, rtol=1e-4, atol=1e-5)


def test_training_updates_statistics_and_depends_on_the_noise(model, variables, inputs):
    @jax.jit
    def train(rngs):
        return model.apply(variables, *inputs, train=True, rngs=rngs, mutable=["batch_stats"])

    (out, updated), (other, _) = train(RNGS), train({**RNGS, "gumbel": jax.random.key(9)})
    for before, after in zip(
        jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(updated), strict=True
    ):
        assert not np.allclose(before, after)
    assert not np.allclose(out.image, other.image)
    np.testing.assert_array_equal(out.text, other.text)


def test_parts_are_projected_with_the_statistics_of_the_wholes(model, perturbed, inputs):
    @partial(jax.jit, static_argnames="train")
    def project(variables, *parts, train):
        given = features.embedding, texts[:, :4], *parts
        method = {"method": "project", "mutable": ["batch_stats"], "train": train}
        return model.apply(variables, *given, **method)

    @jax.jit
    def encode(variables):
        return model.apply(variables, *inputs, method="encode", caption_tokens=True)

    features, texts = encode(perturbed)
    tokens = texts[:, 4:]
    assert tokens.shape[1] == 32 - 2
    whole, updated = project(perturbed, train=True)
    out, updated_with_parts = project(perturbed, features.segments, tokens, train=True)
    jax.tree.map(np.testing.assert_array_equal, updated_with_parts, updated)
    np.testing.assert_array_equal(out.image, whole.image)
    # Parts that are the wholes come out as these do.
    same, _ = project(perturbed, features.embedding[:, None], texts[:, :4], train=True)
    np.testing.assert_allclose(same.segments[:, 0], out.image, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(same.tokens, out.text, rtol=1e-4, atol=1e-5)
    evaluated, _ = project(perturbed, features.segments, tokens, train=False)
    apart = jax.jit(partial(model.apply, method="project_groups"))(perturbed, features.segments)
    np.testing.assert_allclose(evaluated.segments, apart, rtol=1e-4, atol=1e-5)


def test_every_parameter_gets_a_gradient(model, perturbed, inputs):
    @jax.jit
    def gradients(params):
        def total(params):
            out, _ = model.apply(
                {**perturbed, "params": params},
                *inputs,
                train=True,
                rngs=RNGS,
                mutable=["batch_stats"],
            )
            mixed = (jnp.sin(out.image).sum() + jnp.sin(out.text).sum()) * jnp.exp(out.logit_scale)
            return mixed * jnp.exp(out.multi_label_logit_scale)

        return jax.grad(total)(params)

    for path, g in jax.tree_util.tree_leaves_with_path(gradients(perturbed["params"])):
        assert np.isfinite(g).all(), path
        assert np.any(g != 0), path


def test_bfloat16_computes_in_it_and_keeps_float32_where_it_matters(config, perturbed, inputs):
    config = config.copy_and_resolve_references()
    config.dtype = "bfloat16"
    model = build_model(config)
    out, updated = jax.jit(
        lambda: model.apply(perturbed, *inputs, train=True, rngs=RNGS, mutable=["batch_stats"])
    )()
    assert out.image_features.segments.dtype == jnp.bfloat16
    for x in (out.image, out.text, out.logit_scale, *out.image_features.assignments):
        assert x.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(updated)} == {jnp.dtype("float32")}
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
