"""Which settings differ between configurations, and their values as text."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from groupvit_jax.runs.config_check import FREE_FIELDS

SEED = "seed"
ABSENT = "—"
_FREE = tuple(f"{field}." for field in FREE_FIELDS)


def differing_fields(
    configs: Sequence[Mapping[str, Any]], overrides: Sequence[Mapping[str, Any]] = ()
) -> list[str]:
    """Returns the paths of the settings that aren't the same in all, without the seed.

    A field that some lack differs only below those that users name (`FREE_FIELDS`): elsewhere it
    came with a later version, and the runs before it had its default.

    Args:
      configs: whole configurations, values by dotted path.
      overrides: what is known of others.
    """
    fields = dict.fromkeys(field for config in (*configs, *overrides) for field in config)
    return [
        field
        for field in fields
        if field != SEED
        if len({show(config[field]) for config in (*configs, *overrides) if field in config}) > 1
        or (field.startswith(_FREE) and any(field not in config for config in configs))
    ]


def show(value: Any, digits: int = 15) -> str:
    """Returns a setting's value as text; 1 and 1.0 are the same."""
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return value if isinstance(value, str) and value else json.dumps(value)


def short_texts(values: Sequence[Any]) -> dict[str, str]:
    """Returns for each value in full what is shown of it: digits that tell it from the others."""
    full = {show(value): value for value in values}
    for digits in range(3, 16):
        short = {text: show(value, digits) for text, value in full.items()}
        if len(set(short.values())) == len(full):
            return short
    return {text: text for text in full}


def numbers_of(values: Iterable[str]) -> dict[str, float]:
    """Returns the finite numbers that texts stand for; nothing if one is none."""
    try:
        numbers = {value: float(value) for value in values if value != ABSENT}
    except ValueError:
        return {}
    return numbers if all(map(math.isfinite, numbers.values())) else {}


def in_order(values: Iterable[str]) -> list[str]:
    """Returns each value once: numbers by size, what is absent first, else by the alphabet."""
    known = list(dict.fromkeys(values))
    numbers = numbers_of(known)
    return sorted(known, key=lambda value: (value != ABSENT, numbers.get(value, 0.0), value))
