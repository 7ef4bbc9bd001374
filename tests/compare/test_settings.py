import pytest

from groupvit_jax.compare.settings import (
    ABSENT,
    differing_fields,
    in_order,
    numbers_of,
    short_texts,
    show,
)


def test_only_what_differs_counts_and_never_the_seed():
    configs = [{"seed": s, "a": 1, "b": w, "c": (1, 2)} for s, w in ((0, 0.5), (1, 1.0))]
    assert differing_fields(configs) == ["b"]
    assert differing_fields(configs[:1]) == []


def test_one_and_one_point_nought_are_the_same():
    assert differing_fields([{"a": 1}, {"a": 1.0}]) == []


def test_a_field_that_came_later_is_no_difference_but_a_source_or_evaluator_is():
    old, new = {"a": 1}, {"a": 1, "model.new": 2, "evaluators.voc.kind": "benchmark"}
    assert differing_fields([old, new]) == ["evaluators.voc.kind"]


def test_overrides_add_values_but_lack_nothing():
    whole = {"a": 1, "evaluators.voc.kind": "benchmark"}
    assert differing_fields([whole], [{"a": 2}]) == ["a"]
    assert differing_fields([whole, whole], [{"a": 1}]) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1"), (1.0, "1"), (True, "true"), ("hard", "hard"), ("", '""'), ((1, 2), "[1, 2]"),
     (None, "null"), (3e-4, "0.0003")],
)  # fmt: skip
def test_values_as_text(value, text):
    assert show(value) == text


def test_numbers_have_the_digits_that_tell_them_apart():
    assert list(short_texts([0.123456, 0.987654]).values()) == ["0.123", "0.988"]
    assert list(short_texts([0.123456, 0.123457]).values()) == ["0.123456", "0.123457"]


def test_order_is_by_size_where_all_are_numbers():
    assert in_order(["10", "9", "1e-3", "9"]) == ["1e-3", "9", "10"]
    assert in_order(["10", "9", "x"]) == ["10", "9", "x"]
    assert in_order(["2", ABSENT, "1"]) == [ABSENT, "1", "2"]
    assert numbers_of(["1", "inf"]) == {}
