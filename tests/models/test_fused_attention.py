import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pallas_tpu

from groupvit_jax.models.fused_attention import attend_on_gpu, attend_on_tpu, has_cudnn
from groupvit_jax.models.layers import attend


def draw(num_tokens, dtype=jnp.float32):
    """Queries, keys, values and the output's gradient."""
    rng = np.random.default_rng(num_tokens)
    return jnp.asarray(rng.normal(size=(4, 2, 2, num_tokens, 16)), dtype)


def with_gradients(attention_fn, query, key, value, gradient):
    output, backward = jax.vjp(attention_fn, query, key, value)
    return output, *backward(gradient)


@pytest.mark.parametrize(
    "num_tokens", [8, 260, 640], ids=["too few", "padded, one block", "five blocks"]
)
def test_kernel_for_tpus(num_tokens):
    inputs = draw(num_tokens)
    with pallas_tpu.force_tpu_interpret_mode():
        found = with_gradients(attend_on_tpu, *inputs)
    for value, wanted in zip(found, with_gradients(attend, *inputs), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_cudnn_gets_many_tokens_in_its_order_of_axes(monkeypatch):
    """On a CPU, JAX's plain implementation stands in for the one of the same call that is cuDNN."""
    plain, asked = jax.nn.dot_product_attention, []

    def stand_in(*inputs, implementation):
        asked.append(implementation)
        return plain(*inputs, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    few, float32, many = draw(8, jnp.bfloat16), draw(260), draw(260, jnp.bfloat16)
    for inputs, calls in ((few, []), (float32, []), (many, ["cudnn"])):
        found = with_gradients(attend_on_gpu, *inputs)
        for value, wanted in zip(found, with_gradients(attend, *inputs), strict=True):
            value, wanted = np.asarray(value, np.float32), np.asarray(wanted, np.float32)
            # Both round weights, products and outputs to bfloat16, by at most 2^-8 of them each.
            bound = 2 * 3 * 2**-8 * np.abs(wanted).max()
            np.testing.assert_allclose(value, wanted, rtol=0, atol=bound)
        assert asked == calls


@pytest.mark.parametrize(
    ("platform", "capability", "expected"),
    [
        ("gpu", "9.0", True),
        ("gpu", "7.5", False),
        ("gpu", "gfx942", False),
        ("gpu", None, True),
        ("cpu", None, False),
    ],
)
def test_gpus_with_cudnn_s_attention(platform, capability, expected):
    device = types.SimpleNamespace(platform=platform)
    if capability is not None:
        device.compute_capability = capability
    assert has_cudnn(device) is expected
