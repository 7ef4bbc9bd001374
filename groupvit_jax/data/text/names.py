"""Class names and labels: several names for one class, and when two names are the same."""

from collections.abc import Sequence

# Between the names of one class; no class of the field's sets has it in its name.
SEPARATOR = "|"


def synonyms(name: str) -> tuple[str, ...]:
    """Return the names of a class, `person|people|man`, without spaces around them."""
    parts = (" ".join(part.split()) for part in name.split(SEPARATOR))
    return tuple(part for part in parts if part)


def first_name(name: str) -> str:
    """Return the name that results show for a class."""
    return next(iter(synonyms(name)), name)


def key_of(name: str) -> str:
    """Return what is equal for two spellings of a name: case, spaces, `_` and `-` don't count."""
    return " ".join(name.replace("_", " ").replace("-", " ").casefold().split())


def expanded(names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the synonyms of each class, all lists padded to one length by their first name."""
    found = [synonyms(name) or (name,) for name in names]
    most = max(map(len, found), default=0)
    return tuple((*each, *[each[0]] * (most - len(each))) for each in found)
