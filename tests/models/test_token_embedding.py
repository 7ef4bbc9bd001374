import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from groupvit_jax.models.token_embedding import TokenEmbedding


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_parameter_value_and_gradient_are_those_of_flax(dtype):
    init = nn.initializers.normal(1.0)
    tokens = jnp.array([[3, 0, 3], [9, 3, 1]])  # one row is looked up three times
    ours = TokenEmbedding(10, 4, init, dtype)
    theirs = nn.Embed(10, 4, dtype=dtype, embedding_init=init)
    params = ours.init(jax.random.key(0), tokens)
    jax.tree.map(np.testing.assert_array_equal, params, theirs.init(jax.random.key(0), tokens))
    weights = jax.random.normal(jax.random.key(1), (2, 3, 4), dtype)
    results = [
        jax.value_and_grad(lambda p, m=m: (m.apply(p, tokens) * weights).astype(jnp.float32).sum())(
            params
        )
        for m in (ours, theirs)
    ]
    assert ours.apply(params, tokens).dtype == dtype
    jax.tree.map(np.testing.assert_array_equal, *results)
    assert results[0][1]["params"]["embedding"].dtype == jnp.float32
