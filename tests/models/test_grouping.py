from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from groupvit_jax.models.grouping import AssignAttention, GroupingBlock, assign_to_groups

LOGITS = jax.random.normal(jax.random.key(0), (2, 4, 9))


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def test_hard_assignment_is_one_hot_over_the_groups():
    a = np.asarray(assign_to_groups(LOGITS, "hard", 1.0))
    np.testing.assert_allclose(a.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(a.argmax(1), LOGITS.argmax(1))
    np.testing.assert_allclose(a.max(1), 1, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_gradient_passes_straight_through_to_the_soft_assignment(temperature):
    weights = jax.random.normal(jax.random.key(1), LOGITS.shape)

    def total(logits, kind):
        return (assign_to_groups(logits, kind, temperature) * weights).sum()

    hard, soft = jax.grad(total)(LOGITS, "hard"), jax.grad(total)(LOGITS, "soft")
    np.testing.assert_allclose(hard, soft, atol=1e-5)
    assert np.abs(soft).max() > 1e-3


def test_soft_assignment_is_the_softmax_over_groups_at_its_temperature():
    expected = softmax(np.asarray(LOGITS, np.float64) / 0.5, 1)
    np.testing.assert_allclose(assign_to_groups(LOGITS, "soft", 0.5), expected, atol=1e-6)


def test_gumbel_noise_samples_groups_by_their_softmax():
    logits = jnp.broadcast_to(jnp.array([1.0, 0.0, -1.0])[None, :, None], (1, 3, 40_000))
    a = assign_to_groups(logits, "gumbel", 0.2, jax.random.key(0)[None])
    expected = softmax(np.array([1.0, 0.0, -1.0]), 0)
    np.testing.assert_allclose(a.mean((0, 2)), expected, atol=0.01)


def test_gumbel_without_a_key_is_hard():
    np.testing.assert_array_equal(
        assign_to_groups(LOGITS, "gumbel", 1.0), assign_to_groups(LOGITS, "hard", 1.0)
    )


def block(**changes):
    settings = {"num_output_groups": 3, "token_hidden_dim": 4, "out_dim": 8, "num_heads": 2}
    return GroupingBlock(**(settings | changes))


SEGMENTS = jax.random.normal(jax.random.key(2), (2, 9, 8))
TOKENS = jax.random.normal(jax.random.key(3), (2, 5, 8))


def test_block_averages_segments_by_count_plus_eps():
    """Equation 6 with assign_eps, in float64, from the block's own parameters and assignment."""
    assign = AssignAttention(out_dim=8, kind="hard", eps=1.0)
    groups = TOKENS[:, :3]
    variables = assign.init(jax.random.key(4), groups, SEGMENTS, noise_ids=None)
    out, soft = assign.apply(variables, groups, SEGMENTS, noise_ids=None)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])

    def dense(x, name):
        return x @ p[name]["kernel"] + p[name]["bias"]

    q, k, v = dense(groups, "q_proj"), dense(SEGMENTS, "k_proj"), dense(SEGMENTS, "v_proj")
    logits = q @ k.swapaxes(1, 2) / np.sqrt(8)
    np.testing.assert_allclose(soft, softmax(logits, 1), atol=1e-6)
    hard = np.eye(3)[logits.argmax(1)].swapaxes(1, 2)
    mean = hard / (hard.sum(-1, keepdims=True) + 1.0) @ v
    np.testing.assert_allclose(out, dense(mean, "proj"), atol=1e-6)


def test_soft_assignment_returned_has_no_noise():
    b = block()
    variables = jax.jit(partial(b.init, noise_ids=None))(jax.random.key(4), SEGMENTS, TOKENS)
    _, clean = b.apply(variables, SEGMENTS, TOKENS, noise_ids=None)
    out = {}
    for seed in (0, 1):
        rngs = {"gumbel": jax.random.key(seed)}
        out[seed], soft = b.apply(variables, SEGMENTS, TOKENS, noise_ids=jnp.arange(2), rngs=rngs)
        np.testing.assert_array_equal(soft, clean)
    assert not np.allclose(out[0], out[1])  # the noise does reach the segments


def test_another_output_width_projects_the_residual_without_bias():
    b = block(out_dim=12)
    variables = jax.jit(partial(b.init, noise_ids=None))(jax.random.key(4), SEGMENTS, TOKENS)
    out, _ = b.apply(variables, SEGMENTS, TOKENS, noise_ids=None)
    assert out.shape == (2, 3, 12)
    names = {"/".join(k) for k in flatten_dict(variables["params"])}
    assert "reduction/kernel" in names
    assert "reduction/bias" not in names


def test_empty_group_keeps_its_token_and_finite_gradients():
    b = block(num_output_groups=8)  # at least some of 8 groups get none of 2 segments

    def total(params):
        out, _ = b.apply({"params": params}, SEGMENTS[:, :2], TOKENS, noise_ids=None)
        return (out**2).sum()

    variables = jax.jit(partial(b.init, noise_ids=None))(jax.random.key(4), SEGMENTS[:, :2], TOKENS)
    gradients = jax.jit(jax.grad(total))(variables["params"])
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
