"""Conditions on the values of a configuration, each with the words that describe it."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Rule:
    """A condition.

    Attributes:
      expected: its description, to follow the word "expected".
      holds: whether a value of any type meets it.
    """

    expected: str
    holds: Callable[[Any], bool]


def whole(least: int = 0) -> Rule:
    """Return the rule for whole numbers of at least `least`; True and 1.0 are none."""
    return Rule(
        f"a whole number of at least {least}", lambda value: _is_whole(value) and value >= least
    )


def number(least: float = -math.inf, *, over: float = -math.inf, below: float = math.inf) -> Rule:
    """Return the rule for finite numbers of at least `least`, over `over` and below `below`."""
    limits = [
        f"{word} {limit:g}"
        for word, limit in (("of at least", least), ("over", over), ("below", below))
        if math.isfinite(limit)
    ]
    expected = " ".join(["a number", " and ".join(limits)]).strip()
    return Rule(expected, lambda v: _is_number(v) and v >= least and over < v < below)


def share() -> Rule:
    """Return the rule for probabilities and other shares of a whole."""
    return Rule("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)


def text() -> Rule:
    """Return the rule for any text."""
    return Rule("a text", lambda value: isinstance(value, str))


def truth() -> Rule:
    """Return the rule for True and False."""
    return Rule("True or False", lambda value: isinstance(value, bool))


def one_of(choices: Iterable[str]) -> Rule:
    """Return the rule for one of several texts."""
    known = tuple(choices)
    expected = " or ".join(map(repr, known))
    return Rule(expected, lambda value: isinstance(value, str) and value in known)


def optional(rule: Rule) -> Rule:
    """Return the rule for None, and what another rule allows."""
    return Rule(f"{rule.expected}, or None", lambda value: value is None or rule.holds(value))


def each(what: str, rule: Rule, *, least: int = 0) -> Rule:
    """Return the rule for tuples of at least `least` items that another rule allows.

    Args:
      what: the items and an example, such as "whole numbers of at least 1, such as (6, 3, 3)".
      rule: of every item.
      least: number of items.
    """
    return Rule(
        f"a tuple of {what}",
        lambda value: _is_sequence(value) and len(value) >= least and all(map(rule.holds, value)),
    )


def by_pattern(what: str, rule: Rule) -> Rule:
    """Return the rule for tuples of (regular expression, value) pairs.

    Args:
      what: the pairs and an example.
      rule: of every pair's value.
    """

    def is_pair(item: Any) -> bool:
        return _is_sequence(item) and len(item) == 2 and is_regex(item[0]) and rule.holds(item[1])

    return Rule(
        f"a tuple of {what}", lambda value: _is_sequence(value) and all(map(is_pair, value))
    )


def is_regex(value: Any) -> bool:
    """Return whether the value is a regular expression that compiles."""
    try:
        re.compile(value)
    except (TypeError, re.error):
        return False
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    # In Python True is an int.
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (_is_whole(value) or isinstance(value, float)) and math.isfinite(value)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, tuple | list)  # JSON and sweep files have lists
