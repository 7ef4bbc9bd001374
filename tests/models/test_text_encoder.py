import jax
import jax.numpy as jnp
import numpy as np
import pytest

from groupvit_jax.models.text_encoder import TextEncoder, separate_texts
from tests.bounds import largest_changes, nudged

ENCODER = TextEncoder(
    vocab_size=50, context_length=8, width=64, num_layers=3, num_heads=2, end_of_text_id=40
)
TOKENS = np.array([[39, 5, 6, 40, 0, 0], [39, 5, 40, 0, 0, 0]], np.int32)


@pytest.fixture(scope="module")
def params():
    return jax.jit(ENCODER.init)(jax.random.key(0), jnp.asarray(TOKENS))["params"]


def encode(params, tokens):
    return jax.jit(ENCODER.apply)({"params": params}, jnp.asarray(tokens, jnp.int32))[:, 0]


def test_feature_is_taken_at_the_first_end_of_text(params):
    reference = encode(params, TOKENS)
    tail = TOKENS.copy()
    tail[0, 4:] = 40  # a padding id equal to the end-of-text id must not matter
    tail[1, 3:] = [45, 49, 40]  # nor larger ids after it
    np.testing.assert_allclose(encode(params, tail), reference, atol=1e-6)
    assert not np.allclose(reference[0], reference[1])


def test_padding_length_does_not_matter(params):
    expected = encode(params, TOKENS)
    # Rounding acts like a move of a parameter's last place, in whatever order a sum is taken.
    near = [encode(nudged(params, units), TOKENS) for units in (16, -16)]
    bound = largest_changes(expected, *near)
    assert bound < 1e-4
    np.testing.assert_allclose(encode(params, TOKENS[:, :4]), expected, rtol=0, atol=bound)


def pack(*texts, length=20):
    row = np.zeros((1, length), np.int32)
    row[0, : sum(map(len, texts))] = np.concatenate(texts)
    return row


FIRST, SECOND, LONGEST = [39, 5, 6, 40], [39, 5, 40], [39, 7, 8, 9, 10, 11, 12, 40]


def test_a_text_has_the_same_feature_wherever_it_stands(params):
    alone = [encode(params, [text])[0] for text in (FIRST, SECOND, LONGEST)]
    rows = np.concatenate(
        [pack(FIRST, LONGEST, SECOND, [45] * 5), pack(SECOND, FIRST, LONGEST)], axis=0
    )
    ends = np.array([[3, 14, 11, 3], [6, 2, 14, 6]])
    found = jax.jit(ENCODER.apply)({"params": params}, rows, ends)
    for row in found:
        np.testing.assert_allclose(row, [*alone, alone[0]], atol=1e-5)


@pytest.mark.parametrize("places", [[1, 2], [4, 5, 0]])
def test_tokens_have_features_of_their_own(params, places):
    """In a causal tower those of the text that ends with them."""
    row = pack(FIRST, SECOND)
    ends = np.array([[3, 6]])
    apply = jax.jit(ENCODER.apply)
    found = apply({"params": params}, row, ends, jnp.array(places))
    assert found.shape == (1, 2 + len(places), 64)
    expected = apply({"params": params}, row, np.array([[3, 6, *places]]))
    np.testing.assert_array_equal(found, expected)
    # At the end-of-text token the text's feature is the token's.
    again = apply({"params": params}, row, ends, jnp.array([3, 6]))
    np.testing.assert_array_equal(again[:, 2:], again[:, :2])


def test_separate_texts():
    starts, mask = separate_texts(jnp.array([[39, 5, 40, 39, 40, 0, 0]]), 40)
    np.testing.assert_array_equal(starts, [[0, 0, 0, 3, 3, 5, 5]])
    seen = [[0], [0, 1], [0, 1, 2], [3], [3, 4], [5], [5, 6]]
    assert [list(np.flatnonzero(row)) for row in mask[0]] == seen


def test_every_word_before_the_end_matters(params):
    changed = TOKENS.copy()
    changed[0, 1] = 7
    assert not np.allclose(encode(params, changed)[0], encode(params, TOKENS)[0])


def test_initial_standard_deviations_are_clips(params):
    w, layers = 64, 3
    block = params["blocks_1"]
    expected = {
        0.02: params["token_embedding"]["embedding"],
        0.01: params["position_embedding"],
        w**-0.5: block["attn"]["qkv"]["kernel"],
        w**-0.5 * (2 * layers) ** -0.5: block["attn"]["proj"]["kernel"],
        (2 * w) ** -0.5: block["mlp"]["fc1"]["kernel"],
    }
    for std, value in expected.items():
        assert np.std(value) == pytest.approx(std, rel=0.08)
    fc2 = block["mlp"]["fc2"]["kernel"]
    assert np.std(fc2) == pytest.approx(w**-0.5 * (2 * layers) ** -0.5, rel=0.08)


def test_a_text_too_long_is_refused(params):
    with pytest.raises(ValueError, match="9 tokens, expected at most 8"):
        encode(params, np.zeros((1, 9)))
