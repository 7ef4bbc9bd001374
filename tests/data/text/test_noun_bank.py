import re

import numpy as np
import pytest

from groupvit_jax.data.text.noun_bank import (
    MOST_NOUNS,
    read_noun_bank,
    rows_of,
    write_noun_bank,
)

ROWS = {"dog": 0, "grass": 1, "ball": 2}


def test_a_bank_is_read_as_written_but_for_the_lengths(tmp_path):
    embeddings = np.random.default_rng(0).normal(size=(3, 5))
    write_noun_bank(tmp_path / "bank.npz", ["Dog", "grass", "ball"], embeddings)
    bank = read_noun_bank(tmp_path / "bank.npz")
    assert bank.rows == ROWS
    assert bank.embeddings.dtype == np.float32
    expected = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    np.testing.assert_allclose(bank.embeddings, expected, rtol=1e-6)


def test_rows_are_those_of_a_captions_nouns():
    rest = [-1] * (MOST_NOUNS - 2)
    found = rows_of(ROWS, "Grass, a tree and a Dog: the grass")
    assert found.dtype == np.int32
    assert found.tolist() == [1, 0, *rest]
    # Known nouns are not looked for again.
    assert rows_of(ROWS, "", ["ball", "Ball", "sky", "dog"]).tolist() == [2, 0, *rest]
    many = {str(i): i for i in range(MOST_NOUNS + 1)}
    assert rows_of(many, "", list(many)).tolist() == list(range(MOST_NOUNS))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"nouns": ["dog"]}, "expected a .npz file of the arrays nouns and embeddings"),
        ({"nouns": ["dog"], "embeddings": np.ones((2, 3))}, r"embeddings [2, 3] found, expected N"),
        ({"nouns": [1], "embeddings": np.ones((1, 3))}, "expected N texts and [N, D]"),
        ({"nouns": ["dog"], "embeddings": np.zeros((1, 3))}, "zero or not finite found"),
    ],
)
def test_other_files_are_named(tmp_path, arrays, message):
    np.savez(tmp_path / "bank.npz", **{name: np.array(a) for name, a in arrays.items()})
    with pytest.raises(ValueError, match=rf"^config\.data\.noun_bank: .*{re.escape(message)}"):
        read_noun_bank(tmp_path / "bank.npz")


def test_a_file_that_is_none_and_one_that_is_not_there(tmp_path):
    (tmp_path / "bank.npz").write_text("nouns")
    with pytest.raises(ValueError, match=r"^config\.data\.noun_bank: .*expected a \.npz file"):
        read_noun_bank(tmp_path / "bank.npz")
    with pytest.raises(
        FileNotFoundError, match=r"config\.data\.noun_bank: 'x' found, where there is no"
    ):
        read_noun_bank("x")
