"""Class names and labels: several names for one class, and when two names are the same."""

import difflib
from collections.abc import Iterable, Sequence

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


def nearest(name: str, names: Iterable[str]) -> str:
    """Return the one of the names whose spelling is most like `name`; "" of none."""
    by_key = {key_of(each): each for each in names}
    found = difflib.get_close_matches(key_of(name), by_key, n=1, cutoff=0.0)
    return by_key[found[0]] if found else ""


def keys_of(classes: Iterable[str]) -> set[str]:
    """Return the keys of all names of some classes."""
    return {key_of(name) for class_ in classes for name in (class_, *synonyms(class_))}


def check_known(names: Iterable[str], classes: Sequence[str], where: str) -> None:
    """Raise a ValueError for a name that is none of any class; it says which is the nearest."""
    keys = keys_of(classes)
    for name in names:
        if key_of(name) not in keys:
            near = nearest(name, [each for class_ in classes for each in synonyms(class_)])
            raise ValueError(
                f"{where}: {name!r} is none of the {len(classes)} names found, the nearest of "
                f"which is {near!r}"
            )


def expanded(names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the synonyms of each class, all lists padded to one length by their first name."""
    found = [synonyms(name) or (name,) for name in names]
    most = max(map(len, found), default=0)
    return tuple((*each, *[each[0]] * (most - len(each))) for each in found)
