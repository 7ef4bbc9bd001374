import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pallas_tpu

from groupvit_jax.models.fused_attention import attend_on_gpu, attend_on_tpu
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


def test_call_of_cudnn(monkeypatch):
    # No GPU here: what is asked of cuDNN is read from the program for one.
    module = "jax._src.cudnn.fused_attention_stablehlo"
    monkeypatch.setattr(f"{module}.check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(f"{module}.check_compute_capability", lambda capability: True)
    monkeypatch.setattr(f"{module}.is_cuda_compute_capability_equal", lambda capability: False)
    traced = jax.jit(lambda x: with_gradients(attend_on_gpu, *x)).trace(draw(260, jnp.bfloat16))
    program = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert program.count("__cudnn$fmhaSoftmax(") == 1
    assert program.count("__cudnn$fmhaSoftmaxBackward(") == 1
    assert "fmha_scale\\22: 0.25," in program
