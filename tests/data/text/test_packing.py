import numpy as np
import pytest

from groupvit_jax.data.text import packing


def rows(*texts):
    """Zero-padded rows that end with 9."""
    return [np.array([*text, 9, *[0] * (7 - len(text))], np.int32) for text in texts]


def test_texts_of_an_image_share_a_row():
    row, ends, overflow = packing.pack_texts(rows([1, 2], [3], [4, 5, 6]), 12, 9)
    assert row.tolist() == [1, 2, 9, 3, 9, 4, 5, 6, 9, 0, 0, 0]
    assert ends.tolist() == [2, 4, 8]
    assert overflow == 0
    assert (row.dtype, ends.dtype) == (np.int32, np.int32)


def test_a_text_that_comes_twice_is_stored_once():
    row, ends, overflow = packing.pack_texts(rows([1, 2], [3], [1, 2], [3]), 5, 9)
    assert row.tolist() == [1, 2, 9, 3, 9]
    assert ends.tolist() == [2, 4, 2, 4]
    assert overflow == 0


def test_a_prompt_that_does_not_fit_becomes_the_caption():
    row, ends, overflow = packing.pack_texts(rows([1, 2], [3, 4, 5], [6], [3, 4, 5]), 6, 9)
    assert row.tolist() == [1, 2, 9, 6, 9, 0]
    assert ends.tolist() == [2, 2, 4, 2]
    assert overflow == 2


def test_a_caption_of_the_greatest_length_is_not_cut():
    caption = np.array([1, 2, 3, 4, 5, 6, 7, 9], np.int32)
    row, ends, overflow = packing.pack_texts([caption, *rows([3])], 8, 9)
    assert row.tolist() == caption.tolist()
    assert (ends.tolist(), overflow) == ([7, 7], 1)


def test_a_row_has_room_for_the_longest_caption():
    packing.check_packed_length(77, 77)
    with pytest.raises(ValueError, match=r"config\.data\.packed_length: 76 found, .* = 77"):
        packing.check_packed_length(76, 77)
