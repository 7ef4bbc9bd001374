import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from groupvit_jax.models import build_model
from groupvit_jax.models.bert_encoder import BertEncoder

ENCODER = BertEncoder(
    vocab_size=50, context_length=8, width=64, num_layers=3, num_heads=2, end_of_text_id=40
)
TOKENS = np.array([[39, 5, 6, 40, 0, 0], [39, 5, 40, 0, 0, 0]], np.int32)
FIRST, SECOND, LONGEST = [39, 5, 6, 40], [39, 5, 40], [39, 7, 8, 9, 10, 11, 12, 40]


@pytest.fixture(scope="module")
def params():
    fresh = jax.jit(ENCODER.init)(jax.random.key(0), jnp.asarray(TOKENS))["params"]
    leaves, tree = jax.tree.flatten(fresh)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    noisy = [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return tree.unflatten(noisy)


def encode(params, tokens):
    return jax.jit(ENCODER.apply)({"params": params}, jnp.asarray(tokens, jnp.int32))[:, 0]


def pack(*texts, length=20):
    row = np.zeros((1, length), np.int32)
    row[0, : sum(map(len, texts))] = np.concatenate(texts)
    return row


def test_what_follows_the_first_end_of_text_does_not_matter(params):
    reference = encode(params, TOKENS)
    tail = TOKENS.copy()
    tail[0, 4:] = 40
    tail[1, 3:] = [45, 49, 40]
    np.testing.assert_allclose(encode(params, tail), reference, atol=1e-5)
    np.testing.assert_allclose(encode(params, TOKENS[:, :4]), reference, atol=1e-5)
    assert not np.allclose(reference[0], reference[1], atol=1e-2)


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_every_token_of_the_text_matters_also_the_last(params, place):
    ids = TOKENS.copy()
    ids[0, place] = 40 if place == 3 else 7
    if place == 3:  # the text gets longer instead
        ids[0, 3:5] = [7, 40]
    assert not np.allclose(encode(params, ids)[0], encode(params, TOKENS)[0], atol=1e-2)


def test_the_order_of_the_words_matters(params):
    turned = TOKENS.copy()
    turned[0, 1:3] = [6, 5]
    assert not np.allclose(encode(params, turned)[0], encode(params, TOKENS)[0], atol=1e-2)


def test_a_text_has_the_same_feature_wherever_it_stands(params):
    alone = [encode(params, [text])[0] for text in (FIRST, SECOND, LONGEST)]
    rows = np.concatenate(
        [pack(FIRST, LONGEST, SECOND, [45] * 5), pack(SECOND, FIRST, LONGEST)], axis=0
    )
    # The last is the first once more, as a caption that stands in for a missing prompt.
    ends = np.array([[3, 14, 11, 3], [6, 2, 14, 6]])
    found = jax.jit(ENCODER.apply)({"params": params}, rows, ends)
    for row in found:
        np.testing.assert_allclose(row, [*alone, alone[0]], atol=1e-5)


def test_tokens_have_features_of_their_own(params):
    row, ends = pack(FIRST, SECOND), np.array([[3, 6]])
    found = jax.jit(ENCODER.apply)({"params": params}, row, ends, jnp.array([0, 1, 2, 4]))
    assert found.shape == (1, 6, 64)
    # A text's feature is that of its first token.
    np.testing.assert_array_equal(found[:, 2], found[:, 0])
    numbers = np.asarray(found[0])
    assert min(np.abs(numbers[i] - numbers[j]).max() for i in range(5) for j in range(2, i)) > 0.1


def test_gradients_of_packed_texts_equal_those_of_texts_apart(params):
    def packed_sum(params):
        rows, ends = jnp.array(pack(FIRST, LONGEST, SECOND)), jnp.array([[3, 11, 14]])
        return jnp.sin(ENCODER.apply({"params": params}, rows, ends)).sum()

    def apart_sum(params):
        texts = [jnp.array([text]) for text in (FIRST, LONGEST, SECOND)]
        return sum(jnp.sin(ENCODER.apply({"params": params}, text)).sum() for text in texts)

    found, expected = jax.jit(jax.grad(packed_sum))(params), jax.jit(jax.grad(apart_sum))(params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()))


def test_a_text_too_long_is_refused(params):
    with pytest.raises(ValueError, match="9 tokens, expected at most 8"):
        encode(params, np.zeros((1, 9)))


def test_the_kind_chooses_the_tower():
    config = tiny.get_config().model
    assert type(build_model(config).text_encoder).__name__ == "TextEncoder"
    del config.text["kind"]  # as configurations that were recorded before there was a choice
    del config.text["mlp_ratio"]
    assert type(build_model(config).text_encoder).__name__ == "TextEncoder"
    config.text.kind = "bert"
    assert type(build_model(config).text_encoder).__name__ == "BertEncoder"
    config.text.kind = "lstm"
    with pytest.raises(ValueError, match=r"model.text.kind: 'lstm' found, expected 'clip' or"):
        build_model(config)


def test_heads_that_do_not_divide_the_width_are_refused():
    config = tiny.get_config().model
    config.text.num_heads = 3
    with pytest.raises(ValueError, match=r"model.text.num_heads: 3 found, expected a divisor"):
        build_model(config)
