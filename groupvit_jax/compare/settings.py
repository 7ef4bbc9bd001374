"""Settings that differ between configurations, and their values as text."""

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
    """Return the dotted paths of settings that differ between runs, without the seed.

    A missing field counts as a difference only below fields whose keys users choose
    (`FREE_FIELDS`). Elsewhere it was added in a later version, and older runs had its default.

    Args:
      configs: complete configurations, values by dotted path.
      overrides: the known settings of runs without a configuration.
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
    """Return a setting's value as text, the same for 1 and 1.0."""
    if isinstance(value, float):
        # 15 digits are those that a float keeps of any decimal: 0.1 + 0.2 counts as 0.3.
        return f"{value:.{digits}g}"
    return value if isinstance(value, str) and value else json.dumps(value)


def short_texts(values: Sequence[Any]) -> dict[str, str]:
    """Map each value's full text to the shortest that is still unique."""
    full = {show(value): value for value in values}
    for digits in range(3, 16):
        short = {text: show(value, digits) for text, value in full.items()}
        if len(set(short.values())) == len(full):
            return short
    return {text: text for text in full}


def numbers_of(values: Iterable[str]) -> dict[str, float]:
    """Parse texts as finite numbers; return {} if any is not a number."""
    try:
        numbers = {value: float(value) for value in values if value != ABSENT}
    except ValueError:
        return {}
    return numbers if all(map(math.isfinite, numbers.values())) else {}


def in_order(values: Iterable[str]) -> list[str]:
    """Return the unique values in order: absent first, then by size, else alphabetically."""
    known = list(dict.fromkeys(values))
    numbers = numbers_of(known)
    # Without numbers all are 0.0, and the text decides.
    return sorted(known, key=lambda value: (value != ABSENT, numbers.get(value, 0.0), value))
