import cv2
import numpy as np
import pytest

from groupvit_jax.report import lettering


@pytest.mark.parametrize("text", ["dog", "Käfer", "собака", "犬"])
def test_any_alphabet_is_written(text):
    letters = lettering.fit(text, 20, 400)
    unknown = lettering.fit("?" * len(text), 20, 400)
    assert (letters > 200).any()
    assert letters.shape != unknown.shape or (letters != unknown).any()


def test_letters_shrink_to_fit_and_then_lose_their_end():
    text = "a label of several words"
    whole = lettering.fit(text, 30, 2000)
    smaller = lettering.fit(text, 30, whole.shape[1] // 2)
    cut = lettering.fit(text, 30, 60)
    assert smaller.shape[1] <= whole.shape[1] // 2
    assert smaller.shape[0] < whole.shape[0]
    assert 30 < cut.shape[1] <= 60


@pytest.mark.parametrize("tone", [0, 128, 255])
def test_white_letters_stand_out_on_any_background(tone):
    letters = lettering.fit("dog", 24, 400)
    image = np.full((*letters.shape, 3), tone, np.uint8)
    lettering.stamp(image, letters, 0, 0)
    inside = letters > 250
    near = cv2.dilate(letters, np.ones((5, 5), np.uint8)) > 250
    assert image[inside].mean() > 240
    assert image[near & (letters == 0)].mean() < 110


def test_letters_that_reach_over_the_border_are_cut():
    letters = lettering.fit("dog", 24, 400)
    image = np.full((40, 40, 3), 100, np.uint8)
    lettering.stamp(image, letters, 10, 10)
    assert (image[:9] == 100).all()
    assert (image[20:] != 100).any()


def test_lines_are_equally_high_whatever_is_written():
    height = lettering.line_height(20)
    for text in ("a", "Ág", "犬"):
        assert lettering.fit(text, 20, 400).shape[0] <= height + 2


@pytest.mark.parametrize(
    ("text", "written"),
    [("dog, 2 m", True), ("собака", True), ("犬", True), ("कुत्ता", False), ("🐶 dog", False)],
)
def test_scripts_that_the_font_lacks_are_known(text, written):
    assert lettering.can_write(text) == written
