"""Our mathematics against stored outputs of transformers' GroupViT, without PyTorch."""

import re

import numpy as np
import pytest

from groupvit_jax.interop import verify
from tests.interop import make_goldens, training, weights


@pytest.fixture(scope="module")
def goldens():
    with np.load(make_goldens.PATH, allow_pickle=False) as file:
        return dict(file)


def below(goldens, prefix):
    return {k.removeprefix(prefix): v for k, v in goldens.items() if k.startswith(prefix)}


def test_the_file_is_small():
    assert make_goldens.PATH.stat().st_size < 300_000


@pytest.mark.parametrize("case", make_goldens.CASES)
def test_outputs_agree(run_small, goldens, case):
    *_, found = run_small(case, 0)
    expected = below(goldens, f"{case}/outputs/")
    assert found.keys() == expected.keys()
    for row in verify.compare(found, expected):
        assert row.relative <= verify.TOLERANCE, row


@pytest.mark.parametrize("case", make_goldens.TRAINING_CASES)
def test_loss_statistics_and_gradients_agree(goldens, case):
    config = weights.training_config(weights.small_config(case))
    pretrained = weights.random_pretrained(config)
    inputs = make_goldens.case_inputs(case, 8)
    loss, statistics, gradients = training.training_step(pretrained, *inputs)
    np.testing.assert_allclose(loss, goldens[f"{case}/loss"], rtol=1e-5)
    for name, expected in below(goldens, f"{case}/statistics/").items():
        np.testing.assert_allclose(statistics[name], expected, atol=1e-5 * np.abs(expected).max())
    names, expected = goldens[f"{case}/gradient_names"], goldens[f"{case}/gradients"]
    largest = expected[:, 0].max()
    for name, (norm, product) in zip(names, expected, strict=True):
        found_norm, found_product = make_goldens.summarise(gradients[name])
        if re.search(training.ZERO_GRADIENTS, name):
            assert max(norm, found_norm) < 1e-6 * largest, name
        else:
            assert abs(found_norm - norm) <= 1e-3 * norm, name
            assert abs(found_product - product) <= 1e-3 * norm, name
