import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base, tiny
from groupvit_jax import optim
from groupvit_jax.models import build_model
from groupvit_jax.models.segmentation import with_segment_head

PARAMS = {
    "image_encoder": {
        "position_embedding": (1, 4, 3),
        "stages_0": {"group_token": (1, 2, 3), "norm1": {"scale": (3,), "bias": (3,)}},
        "fc1": {"kernel": (3, 5), "bias": (5,)},
        "stacked_norm": {"scale": (2, 3)},
    },
    "logit_scale": (),
}


def tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(scale * rng.normal(size=shape), jnp.float32),
        PARAMS,
        is_leaf=lambda x: isinstance(x, tuple),
    )


@pytest.fixture
def config():
    return base.get_config().optimizer


def timm_rate(step, *, peak, final, warmup_rate, warmup_steps, num_steps):
    if step < warmup_steps:
        return warmup_rate + step * (peak - warmup_rate) / warmup_steps
    if step >= num_steps:
        return final
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * step / num_steps))


@pytest.mark.parametrize(("batch_size", "warmup_steps"), [(4096, 20), (1024, 20), (4096, 0)])
def test_schedule_is_timms(config, batch_size, warmup_steps):
    schedule = optim.make_schedule(
        config.learning_rate,
        100,
        warmup_steps,
        start=config.warmup_learning_rate,
        end=config.final_learning_rate,
        batch_size_ratio=batch_size / config.reference_batch_size,
    )
    for step in [0, 1, 19, 20, 21, 50, 99, 100, 150]:
        expected = timm_rate(
            step,
            peak=1.6e-3 * batch_size / 4096,
            final=4e-5 * batch_size / 4096,
            warmup_rate=4e-6 * batch_size / 4096,
            warmup_steps=warmup_steps,
            num_steps=100,
        )
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-5)


def test_published_rates_at_half_the_batch():
    """All three rates scale, and update i has the rate of step i - 1."""
    schedule = optim.make_schedule(
        1.6e-3, 100, 20, start=4e-6, end=4e-5, batch_size_ratio=0.5, update_lag=1
    )
    first, second, third = map(float, map(schedule, range(3)))
    assert first == second == pytest.approx(2e-6)
    assert third == pytest.approx(2e-6 + (8e-4 - 2e-6) / 20)
    assert float(schedule(101)) == pytest.approx(2e-5)
    earlier = optim.make_schedule(
        1.6e-3, 100, 20, start=4e-6, end=4e-5, batch_size_ratio=0.5, scaled_rates="peak"
    )
    assert float(earlier(0)) == pytest.approx(4e-6)
    assert float(earlier(1)) == pytest.approx(4e-6 + (8e-4 - 4e-6) / 20)
    assert float(earlier(100)) == pytest.approx(4e-5)


def test_schedule_refuses_a_warmup_longer_than_the_run():
    with pytest.raises(ValueError, match=r"warm-up of 10 steps found.*10 steps"):
        optim.make_schedule(1e-3, 10, 10)


def test_decay_mask():
    mask = optim.decay_mask(tree(0))
    assert mask == {
        "image_encoder": {
            "position_embedding": True,
            "stages_0": {"group_token": True, "norm1": {"scale": False, "bias": False}},
            "fc1": {"kernel": True, "bias": False},
            "stacked_norm": {"scale": False},
        },
        "logit_scale": True,
    }


def clip(gradients, limit):
    norm = np.sqrt(sum(np.sum(np.float64(g) ** 2) for g in gradients))
    return [np.float64(g) * min(1, limit / norm) for g in gradients]


def reference_adamw(params, steps, rates, decays, config):
    """torch.optim.AdamW's order: decay, moments, bias correction, step."""
    params = [np.float64(p) for p in params]
    first, second = ([np.zeros_like(p) for p in params] for _ in range(2))
    for t, (gradients, rate) in enumerate(zip(steps, rates, strict=True), start=1):
        for i, gradient in enumerate(clip(gradients, config.clip_norm)):
            params[i] = params[i] * (1 - rate * config.weight_decay * decays[i])
            first[i] = config.b1 * first[i] + (1 - config.b1) * gradient
            second[i] = config.b2 * second[i] + (1 - config.b2) * gradient**2
            denominator = np.sqrt(second[i] / (1 - config.b2**t)) + config.eps
            params[i] = params[i] - rate * first[i] / (1 - config.b1**t) / denominator
    return params


# Norms below and above the clip.
GRADIENT_SCALES = (0.1, 5.0, 1.0, 20.0)


def run(config, schedule):
    params = tree(0)
    optimizer = optim.make_optimizer(config, schedule, jax.eval_shape(lambda: params))
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for seed, scale in enumerate(GRADIENT_SCALES, start=1):
        params, state = step(params, state, tree(seed, scale))
    return params


def test_updates_equal_a_plain_adamw(config):
    config.weight_decay = 5.0  # so that a wrong mask shows
    schedule = optim.make_schedule(config.learning_rate, 8, 2)
    params = run(config, schedule)
    start = jax.tree.leaves(tree(0))
    expected = reference_adamw(
        start,
        [jax.tree.leaves(tree(s, scale)) for s, scale in enumerate(GRADIENT_SCALES, start=1)],
        [float(schedule(i)) for i in range(len(GRADIENT_SCALES))],
        jax.tree.leaves(optim.decay_mask(tree(0))),
        config,
    )
    for actual, want in zip(jax.tree.leaves(params), expected, strict=True):
        np.testing.assert_allclose(actual, want, rtol=2e-5, atol=1e-6)


def test_updates_equal_torch(config):
    torch = pytest.importorskip("torch")
    schedule = optim.make_schedule(config.learning_rate, 8, 2)
    params = run(config, schedule)
    theirs = [torch.tensor(np.asarray(p)) for p in jax.tree.leaves(tree(0))]
    decays = jax.tree.leaves(optim.decay_mask(tree(0)))
    groups = [
        {
            "params": [p for p, d in zip(theirs, decays, strict=True) if d == decayed],
            "weight_decay": config.weight_decay * decayed,
        }
        for decayed in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, betas=(config.b1, config.b2), eps=config.eps)
    for i, scale in enumerate(GRADIENT_SCALES):
        for p, gradient in zip(theirs, jax.tree.leaves(tree(i + 1, scale)), strict=True):
            p.grad = torch.tensor(np.asarray(gradient))
        torch.nn.utils.clip_grad_norm_(theirs, config.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = float(schedule(i))
        optimizer.step()
    for actual, want in zip(jax.tree.leaves(params), theirs, strict=True):
        np.testing.assert_allclose(actual, want.numpy(), rtol=2e-5, atol=1e-6)


def groups_run(config, groups):
    config.groups = groups
    config.weight_decay = 5.0
    return run(config, optax.constant_schedule(1e-3))


def test_the_first_group_that_matches_gives_the_factor():
    groups = (("stages_0/norm1", 0.0), ("image_encoder/", 0.5), ("norm1/bias", 3.0))
    factors = optim.learning_rate_factors(tree(0), groups)
    assert factors == {
        "image_encoder": {
            "position_embedding": 0.5,
            "stages_0": {"group_token": 0.5, "norm1": {"scale": 0.0, "bias": 0.0}},
            "fc1": {"kernel": 0.5, "bias": 0.5},
            "stacked_norm": {"scale": 0.5},
        },
        "logit_scale": 1.0,
    }


def test_groups_that_change_nothing_give_the_same_bits(config):
    expected = groups_run(config, ())
    for actual, want in zip(
        jax.tree.leaves(groups_run(config, (("image_encoder", 1.0),))),
        jax.tree.leaves(expected),
        strict=True,
    ):
        np.testing.assert_array_equal(actual, want)


def test_a_factor_scales_the_whole_update_weight_decay_included(config):
    start = tree(0)
    params = jax.eval_shape(lambda: start)
    config.weight_decay = 5.0
    updates = {}
    for factor in (1.0, 0.25):
        config.groups = (("fc1/kernel", factor),)
        optimizer = optim.make_optimizer(config, optax.constant_schedule(1e-3), params)
        updates[factor], _ = jax.jit(optimizer.update)(tree(1), optimizer.init(start), start)
    full, scaled = (updates[f]["image_encoder"] for f in (1.0, 0.25))
    np.testing.assert_allclose(scaled["fc1"]["kernel"], 0.25 * full["fc1"]["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(scaled["fc1"]["bias"], full["fc1"]["bias"])


def test_frozen_parameters_stay_and_have_no_optimizer_state(config):
    params = groups_run(config, (("stages_0|position", 0.0),))
    start = tree(0)
    for name in ("position_embedding", "stages_0"):
        before, after = start["image_encoder"][name], params["image_encoder"][name]
        jax.tree.map(np.testing.assert_array_equal, before, after)
    kernel = params["image_encoder"]["fc1"]["kernel"]
    assert not np.allclose(kernel, start["image_encoder"]["fc1"]["kernel"])
    optimizer = optim.make_optimizer(config, optax.constant_schedule(1e-3), start)
    paths = [jax.tree_util.keystr(p) for p, _ in _leaves(optimizer.init(start))]
    assert not any("stages_0" in path or "position" in path for path in paths)
    assert sum("fc1" in path for path in paths) == 4  # two moments of kernel and bias


@pytest.mark.parametrize("decay", [0.5, 0.99999])
def test_the_average_weighs_all_values_from_the_first_on(decay):
    values = np.random.default_rng(0).normal(size=(30, 4))
    average = {"kernel": jnp.full(4, 1e6)}  # of no value yet: it must have no weight
    for number, value in enumerate(values, 1):
        new = {"kernel": jnp.asarray(value, jnp.float32)}
        average = optim.update_average(average, new, decay, jnp.int32(number))
    weights = decay ** np.arange(29.0, -1, -1)
    expected = weights @ values / weights.sum()
    # The rounding of the first weight, which is 1, leaves a unit in the last place of 1e6.
    np.testing.assert_allclose(average["kernel"], expected, rtol=1e-5, atol=0.2)


def _leaves(tree):
    return jax.tree_util.tree_leaves_with_path(tree)


def test_frozen_gradients_have_no_part_in_the_clip(config):
    """The others are updated as if the frozen parameters weren't there."""
    start, gradients = tree(0), tree(1)
    gradients["logit_scale"] = jnp.float32(jnp.inf)
    config.groups = (("logit_scale", 0.0),)
    optimizer = optim.make_optimizer(config, optax.constant_schedule(1e-3), start)
    updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(start), start)
    assert updates["logit_scale"] == 0
    config.groups = ()
    start.pop("logit_scale"), gradients.pop("logit_scale")
    optimizer = optim.make_optimizer(config, optax.constant_schedule(1e-3), start)
    expected, _ = jax.jit(optimizer.update)(gradients, optimizer.init(start), start)
    updates.pop("logit_scale")
    jax.tree.map(np.testing.assert_array_equal, updates, expected)


def test_frozen_parameters_are_constants_to_the_gradient():
    def loss(params):
        params = optim.stop_frozen_gradients(params, (("fc1", 0.0), ("logit_scale", 0.1)))
        return sum((x**2).sum() for x in jax.tree.leaves(params))

    gradients = jax.jit(jax.grad(loss))(tree(0))
    assert not np.any(gradients["image_encoder"]["fc1"]["kernel"])
    np.testing.assert_allclose(gradients["logit_scale"], 2 * tree(0)["logit_scale"], rtol=1e-6)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ((("text_encodr/", 0.1),), r"groups: 'text_encodr/' matches no parameter, expected a part"),
        ((("fc1", -1.0),), r"groups: -1.0 found for 'fc1', expected at least 0"),
        ((("fc1(", 1.0),), r"groups: 'fc1\(' is no regular expression"),
    ],
)
def test_wrong_groups_are_refused(config, groups, message):
    config.groups = groups
    with pytest.raises(ValueError, match=message):
        optim.make_optimizer(config, optax.constant_schedule(1e-3), tree(0))


def test_layer_decay_gives_each_parameter_one_factor():
    config = tiny.get_config().model
    model = with_segment_head(build_model(config), 5)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    sizes = config.image.depths, config.image.num_group_tokens
    factors = optim.learning_rate_factors(params, optim.layer_decay_groups(*sizes, 0.5))
    tower = factors["image_encoder"]
    stages = [tower[f"stages_{i}"] for i in range(3)]
    # Embedding, (block, grouping) x 2, block: six layers below the last normalisation.
    expected = {
        2**-6: (tower["patch_embed"], tower["position_embedding"], stages[0]["group_token"]),
        2**-5: (stages[0]["blocks_0"],),
        2**-4: (stages[0]["downsample"], stages[1]["group_token"], stages[1]["group_projector"]),
        2**-3: (stages[1]["blocks_0"],),
        2**-2: (stages[1]["downsample"],),
        2**-1: (stages[2]["blocks_0"],),
        1.0: (tower["norm"], factors["segment_head"]),
    }
    for factor, parts in expected.items():
        assert set(jax.tree.leaves(parts)) == {factor}
    counted = sum(len(jax.tree.leaves(parts)) for parts in expected.values())
    assert counted == len(jax.tree.leaves(factors))


@pytest.mark.parametrize("decay", [0.0, 1.5, float("nan")])
def test_layer_decay_is_checked(decay):
    with pytest.raises(ValueError, match="layer decay"):
        optim.layer_decay_groups((1, 1), (8, 0), decay)


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clipping_is_that_of_optax(max_norm):
    rng = np.random.default_rng(0)
    shapes = {"scale": (), "bias": (5,), "norm": (3,), "kernel": (4, 5), "empty": (0,)}
    tree = {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()
    }
    norm = np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in tree.values()))
    np.testing.assert_allclose(optim.global_norm(tree), norm, rtol=1e-6)
    found, expected = (
        make(max_norm).update(tree, ())[0]
        for make in (optim.clip_by_global_norm, optax.clip_by_global_norm)
    )
    for name in shapes:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, err_msg=name)
