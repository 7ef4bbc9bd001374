import jax
import jax.numpy as jnp
import pytest

from configs import base, tiny
from groupvit_jax.models.image_encoder import ImageEncoder
from groupvit_jax.models.text_encoder import TextEncoder
from groupvit_jax.plan import flops
from groupvit_jax.plan.compiling import lower_step
from groupvit_jax.plan.costs import matrix_flops
from groupvit_jax.plan.plan import count_flops
from groupvit_jax.plan.program import parse_program
from groupvit_jax.train.tasks import task_of
from tests.plan.machines import host


def flops_of(config):
    """FLOPs an image over whole rows of text, and without padding."""
    return count_flops(
        task_of(config).build_model(config),
        batch_size=config.train.batch_size,
        num_texts=1 + config.data.num_nouns,
        packed_length=config.data.packed_length,
    )


def step_flops(config):
    return flops_of(config)[0]


def useful_flops(config):
    return flops_of(config)[1]


def shallow(batch_size):
    """The published widths, which decide what share of the work is in matrices."""
    config = base.get_config()
    config.model.image.depths = (1, 1, 1)
    config.model.text.num_layers = 1
    config.train.batch_size = batch_size
    return config


def test_xla_counts_the_same():
    config = shallow(32)
    lowered, *_ = lower_step(config, host(1))
    counted = lowered.cost_analysis()["flops"] / 32
    assert step_flops(config) == pytest.approx(counted, rel=0.05)


def test_the_compiled_program_computes_no_more_products():
    config = tiny.get_config()
    lowered, *_ = lower_step(config, host(4))
    counted = 4 * matrix_flops(parse_program(lowered.compile().as_text())) / 16
    assert step_flops(config) == pytest.approx(counted, rel=0.05)


def test_masks_instead_of_texts():
    config = tiny.get_config()
    config.task = "segmentation"
    config.segmentation.class_names = ("background", "cat", "dog")
    lowered, *_ = lower_step(config, host(4))
    counted = 4 * matrix_flops(parse_program(lowered.compile().as_text())) / 16
    assert step_flops(config) == pytest.approx(counted, rel=0.05)
    assert useful_flops(config) == step_flops(config)


def test_published_image_encoder():
    # 8.2 GFLOP as XLA counts it, all else included.
    count = flops.image_encoder_flops(ImageEncoder(**base.get_config().model.image))
    assert count == pytest.approx(8.2e9, rel=0.05)


@pytest.mark.parametrize(
    "changes",
    [
        {"width_factors": (1, 2, 4)},
        {"depths": (1, 1), "num_group_tokens": (8, 0), "num_output_groups": (8,)},
        {"depths": (1, 1), "num_group_tokens": (8, 4), "num_output_groups": (8, 4)},
        {"patch_size": 4, "mlp_ratio": 2.0},
    ],
    ids=["pyramid", "one stage", "groups to the end", "small patches"],
)
def test_other_encoders(changes):
    config = tiny.get_config().model.image
    config.update(changes)
    encoder = ImageEncoder(**config)

    def forward(key, images):
        return encoder.init_with_output(key, images)[0].embedding

    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    compiled = jax.jit(forward).lower(jax.random.key(0), images).compile()
    counted = matrix_flops(parse_program(compiled.as_text()))
    assert flops.image_encoder_flops(encoder) == counted


def test_padding_is_not_useful():
    config = base.get_config()
    assert useful_flops(config) < step_flops(config)
    config.data.packed_length = 160
    text = TextEncoder(width=256, num_layers=12)
    tokens = flops.text_encoder_flops(text, [160]) - flops.text_encoder_flops(text, [80])
    added = step_flops(config) - step_flops(base.get_config())
    assert added == pytest.approx(3 * tokens)
    assert useful_flops(config) == useful_flops(base.get_config())
