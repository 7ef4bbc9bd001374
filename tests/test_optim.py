import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from groupvit_jax import optim

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
    schedule = optim.make_schedule(config, batch_size, 100, warmup_steps)
    for step in [0, 1, 19, 20, 21, 50, 99, 100, 150]:
        expected = timm_rate(
            step,
            peak=1.6e-3 * batch_size / 4096,
            final=4e-5,
            warmup_rate=4e-6,
            warmup_steps=warmup_steps,
            num_steps=100,
        )
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-5)


def test_schedule_refuses_a_warmup_longer_than_the_run(config):
    with pytest.raises(ValueError, match=r"warm-up of 10 steps found.*10 steps"):
        optim.make_schedule(config, 4096, 10, 10)


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
    schedule = optim.make_schedule(config, 4096, 8, 2)
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
    schedule = optim.make_schedule(config, 4096, 8, 2)
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
