import functools

import pytest

from groupvit_jax.interop import verify
from tests.interop import weights


@functools.cache
def _run_small(case, seed):
    config = weights.small_config(case)
    pretrained = weights.random_pretrained(config, seed)
    inputs = weights.images_and_tokens(config, weights.small_size(case), 2, seed)
    return pretrained, *inputs, verify.our_outputs(pretrained, *inputs)


@pytest.fixture(scope="session")
def run_small():
    """Weights, images, tokens and our outputs of a small case; computed once."""
    return _run_small


@pytest.fixture(scope="session")
def small():
    """The small model of the published structure."""
    return weights.random_pretrained(weights.small_config())


@pytest.fixture
def assert_identical():
    """Checks that two models have the same bits, names, configuration and tokenizer."""

    def check(found, expected):
        assert found.model_config == expected.model_config
        assert found.tokenizer == expected.tokenizer
        there, here = weights.flat(found), weights.flat(expected)
        assert there.keys() == here.keys()
        for name, array in here.items():
            assert there[name].dtype == array.dtype, name
            assert there[name].shape == array.shape, name
            assert there[name].tobytes() == array.tobytes(), name

    return check
