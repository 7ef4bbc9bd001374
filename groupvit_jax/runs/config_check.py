"""Configurations as flat mappings: by path, compared, and the field nearest to a misspelt one."""

import difflib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

# What lies below is named by the user: sets, evaluators and their options.
FREE_FIELDS = ("data.sources", "evaluators")


def unknown_field(field: str, known: Collection[str]) -> str:
    """Return the line that names the field nearest to a misspelt one."""
    nearest = max(known, key=lambda name: _similarity(name, field))
    return f"config.{field}: no such field, the nearest is config.{nearest}"


def flatten(config: Mapping[str, Any], free: tuple[str, ...] = FREE_FIELDS) -> dict[str, Any]:
    """Return a configuration's values by dotted path, without those below the fields `free`."""
    return dict(_leaves(config, "", free))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the old and the new value by path of each field that differs, the free ones too.

    Args:
      old: a configuration as nested mappings.
      new: another one.
    """
    before, after = dict(_leaves(old, "", ())), dict(_leaves(new, "", ()))
    fields = {**before, **after}
    pairs = {field: (before.get(field), after.get(field)) for field in fields}
    return {field: pair for field, pair in pairs.items() if pair[0] != pair[1]}


def _leaves(
    values: Mapping[str, Any], prefix: str, free: tuple[str, ...]
) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        field = f"{prefix}{name}"
        if field in free:
            continue
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{field}.", free)
        else:
            yield field, _lists_as_tuples(value)


def _lists_as_tuples(value: Any) -> Any:
    return tuple(map(_lists_as_tuples, value)) if isinstance(value, list | tuple) else value


def _similarity(name: str, field: str) -> float:
    """Compare the last parts first: the section is more often left out than misspelt."""
    last_name, last_field = name.rpartition(".")[2], field.rpartition(".")[2]
    return (
        difflib.SequenceMatcher(None, last_name, last_field).ratio()
        + difflib.SequenceMatcher(None, name, field).ratio() / 2
    )
