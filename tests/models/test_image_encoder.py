import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from groupvit_jax.models.image_encoder import ImageEncoder

SETTINGS = tiny.get_config().model.image.to_dict()


@pytest.fixture(scope="module")
def default_variables():
    return jax.jit(ImageEncoder(**SETTINGS).init)(jax.random.key(0), images(32, 32))


def encode(images, **changes):
    encoder = ImageEncoder(**(SETTINGS | changes))
    variables = jax.jit(encoder.init)(jax.random.key(0), images)
    return jax.jit(encoder.apply)(variables, images), variables["params"]


def images(*shape):
    return jax.random.normal(jax.random.key(5), (2, *shape, 3))


@pytest.mark.parametrize(
    ("changes", "groups"),
    [
        ({}, [8, 4]),
        ({"depths": (2, 1), "num_group_tokens": (6, 0), "num_output_groups": (3,)}, [3]),
        ({"depths": (2,), "num_group_tokens": (6,), "num_output_groups": (3,)}, [3]),
        (
            {
                "depths": (1, 1, 1, 1),
                "num_group_tokens": (9, 6, 4, 0),
                "num_output_groups": (9, 5, 2),
            },
            [9, 5, 2],
        ),
        ({"patch_size": 4, "position_embedding": "sincos"}, [8, 4]),
        ({"patch_size": 16}, [8, 4]),
        ({"width_factors": (1, 2, 2)}, [8, 4]),
    ],
)
def test_any_stages_patches_and_widths(changes, groups):
    features, _ = encode(images(32, 32), **changes)
    settings = SETTINGS | changes
    width = settings["width"] * (settings["width_factors"] or (1,))[-1]
    segments = (32 // settings["patch_size"]) ** 2
    for assignment, number in zip(features.assignments, groups, strict=True):
        assert assignment.shape == (2, number, segments)
        np.testing.assert_allclose(assignment.sum(1), 1, atol=1e-5)
        segments = number
    assert features.segments.shape == (2, groups[-1], width)
    np.testing.assert_allclose(features.embedding, features.segments.mean(1), atol=1e-6)


@pytest.mark.parametrize(("height", "width", "patches"), [(48, 32, 24), (30, 41, 24), (8, 64, 8)])
def test_any_image_size(default_variables, height, width, patches):
    encoder = ImageEncoder(**SETTINGS)
    features = jax.jit(encoder.apply)(default_variables, images(height, width))
    assert features.assignments[0].shape == (2, 8, patches)
    assert np.isfinite(features.embedding).all()


def test_padding_is_what_a_zero_border_gives(default_variables):
    encoder, odd = ImageEncoder(**SETTINGS), images(30, 41)
    padded = jnp.pad(odd, ((0, 0), (0, 2), (0, 7), (0, 0)))
    a, b = (jax.jit(encoder.apply)(default_variables, x).embedding for x in (odd, padded))
    np.testing.assert_array_equal(a, b)


def test_group_tokens_and_positions_start_as_the_paper_has_them():
    encoder = ImageEncoder(**(SETTINGS | {"width": 96}))
    params = jax.jit(encoder.init)(jax.random.key(0), images(32, 32))["params"]
    first, later = params["stages_0"]["group_token"], params["stages_1"]["group_token"]
    assert np.std(first) == pytest.approx(0.02, rel=0.15)
    np.testing.assert_array_equal(later, 0)
    assert "group_token" not in params["stages_2"]
    assert np.std(params["position_embedding"]) == pytest.approx(0.02, rel=0.15)
    qkv = params["stages_0"]["blocks_0"]["attn"]["qkv"]
    assert np.std(qkv["kernel"]) == pytest.approx(0.02, rel=0.05)
    np.testing.assert_array_equal(qkv["bias"], 0)


def test_stochastic_depth_rises_to_its_rate_over_all_blocks(monkeypatch):
    encoder = ImageEncoder(**(SETTINGS | {"depths": (2, 2, 1), "drop_path_rate": 0.4}))
    drawn = []

    def record(keys, rates):
        drawn.append(rates)
        return jnp.ones((len(rates), 2, len(keys)))

    monkeypatch.setattr("groupvit_jax.models.image_encoder.draw_branch_scales", record)
    variables = jax.eval_shape(encoder.init, jax.random.key(0), images(32, 32))
    assert not drawn
    rngs = {"drop_path": jax.random.key(1), "gumbel": jax.random.key(2)}
    jax.eval_shape(
        lambda values: encoder.apply(
            values, images(32, 32), noise_ids=jnp.arange(len(images(32, 32))), rngs=rngs
        ),
        variables,
    )
    np.testing.assert_allclose(drawn, [[0, 0.1, 0.2, 0.3, 0.4]])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_group_tokens", (8, 4)),
        ("num_group_tokens", (0, 4, 0)),
        ("num_output_groups", (8, 4, 2)),
        ("width_factors", (1, 2)),
        ("width", 33),
        ("image_size", 30),
        ("assignment", "sparse"),
        ("position_embedding", "rotary"),
    ],
)
def test_contradictions_name_the_field(field, value):
    with pytest.raises(ValueError, match=rf"^config\.model\.image\.{field}: .*expected"):
        ImageEncoder(**(SETTINGS | {field: value}))
