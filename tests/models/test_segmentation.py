import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from groupvit_jax.models import build_model
from groupvit_jax.models.segmentation import with_segment_head


@pytest.fixture(scope="module")
def made():
    model = with_segment_head(build_model(tiny.get_config().model), 5)
    images = jax.random.normal(jax.random.key(1), (2, 20, 24, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    return variables, jax.jit(model.apply)(variables, images)


def test_logits_are_linear_in_the_segments(made):
    variables, output = made
    head = variables["params"]["segment_head"]["classes"]
    expected = np.float64(output.features.segments) @ np.float64(head["kernel"]) + head["bias"]
    np.testing.assert_allclose(output.logits, expected, atol=1e-6)
    assert output.logits.shape == (2, 4, 5)


def test_every_patch_is_shared_out_to_the_segments(made):
    first, second = (np.float64(a) for a in made[1].features.assignments)
    expected = np.einsum("bhg,bgl->blh", second, first).reshape(2, 3, 3, 4)
    np.testing.assert_allclose(made[1].maps, expected, atol=1e-6)
    np.testing.assert_allclose(made[1].maps.sum(-1), 1, atol=1e-6)


def test_the_tower_has_the_names_and_shapes_of_the_two_towers(made):
    text = jnp.ones((1, 32), jnp.int32)
    model = build_model(tiny.get_config().model)
    whole = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)), text, text)
    shapes = [
        jax.tree.map(lambda x: x.shape, tree["params"]["image_encoder"])
        for tree in (whole, made[0])
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("num_classes", [0, 256])
def test_number_of_classes_is_checked(num_classes):
    with pytest.raises(ValueError, match=rf"class_names: {num_classes} names found"):
        with_segment_head(build_model(tiny.get_config().model), num_classes)


def test_a_tower_without_groups_is_refused():
    config = tiny.get_config().model
    config.image.update(depths=(1,), num_group_tokens=(0,), num_output_groups=())
    with pytest.raises(ValueError, match=r"num_output_groups: \(\) found"):
        with_segment_head(build_model(config), 5)
