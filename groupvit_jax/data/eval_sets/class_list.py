"""The classes of a set of one's own: names, synonyms, and the values that masks store for them.

A list of classes is a text file, one class a line,

    background
    person|people|man        several names: the best match counts
    # a comment, or a blank line, is no class but has a number as every line

where the number of a line, from 0, is the value in the masks; or every line gives the value or the
colour itself, `lesion: 255` or `building: 128 0 0` (also CVAT's labelmap.txt,
`building:128,0,0::`). A description (see `description`) may hold the list, or a table of names with
values or colours.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from groupvit_jax.data.sources.masks import IGNORED
from groupvit_jax.data.text.names import key_of, synonyms
from groupvit_jax.foreign import naming, read_text

# Spellings, without case, spaces and signs.
_BACKGROUND = {"background", "backgrounds", "bg", "backgroundclass"}
_UNLABELLED = {"unlabelled", "unlabeled", "ignore", "ignored", "void", "unknownignore"}
_VALUE = re.compile(r"(?P<name>.*\S)\s*:\s*(?P<value>\d+(?:[ ,]+\d+[ ,]+\d+)?)\s*(?::.*)?$")
_MOST = 255  # classes 0 to 254: masks are bytes, and 255 is ignored

Colour = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class ClassList:
    """The classes of a set.

    Attributes:
      names: without background and unlabelled; `a|b` for a class with two names.
      has_background: whether one of the list is the background.
      classes: stored value or colour -> class in the masks that the reader returns: 0 is the
        background, if there is one, `IGNORED` what is unlabelled.
      shown: stored value or colour -> name, as the list has it.
      by_line: whether values are the numbers of lines or positions in a list, not stated.
      where: the file, for messages.
    """

    names: tuple[str, ...]
    has_background: bool
    classes: Mapping[int | Colour, int]
    shown: Mapping[int | Colour, str]
    by_line: bool
    where: str

    @property
    def in_colours(self) -> bool:
        """Whether the list gives colours."""
        return any(isinstance(key, tuple) for key in self.classes)


def read_class_list(path: Path) -> ClassList:
    """Read a file with a class a line; a ValueError names the file."""
    with naming(path):
        lines = read_text(path).splitlines()
    entries: list[tuple[str, Any]] = []
    stated = 0
    for number, line in enumerate(lines):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if match := _VALUE.match(text):
            stated += 1
            entries.append((match["name"], _value(re.split("[ ,]+", match["value"]))))
        else:
            entries.append((text, number))
    if stated not in (0, len(entries)):
        raise ValueError(
            f"{path}: {stated} of {len(entries)} classes with a value found, expected all or none"
        )
    return make_class_list(entries, str(path), by_line=not stated)


def parse_classes(given: Any, where: str) -> ClassList:
    """Return the classes of a description: names in a list, or a table of values or colours."""
    if isinstance(given, Mapping):
        return make_class_list([(name, _value(v)) for name, v in given.items()], where)
    if isinstance(given, Sequence) and not isinstance(given, str):
        return make_class_list([(name, i) for i, name in enumerate(given)], where, by_line=True)
    raise ValueError(f"{where}: {given!r} found, expected a list of names or a table of values")


def _value(given: Any) -> int | Colour:
    """Return a stored value, or a colour of three."""
    parts = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    try:
        numbers = [int(part) for part in parts]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) == 3 and all(0 <= n <= 255 for n in numbers):
        return numbers[0], numbers[1], numbers[2]
    if len(numbers) == 1 and 0 <= numbers[0] < 2**16:
        return numbers[0]
    raise ValueError(f"value {given!r} found, expected 0 to 65535 or a colour such as [128, 0, 0]")


def make_class_list(
    entries: Iterable[tuple[str, int | Colour]],
    where: str,
    *,
    by_line: bool = False,
    background: str | bool | None = None,
) -> ClassList:
    """Order the classes, with the background first.

    Args:
      entries: name and stored value or colour of each class.
      where: the file, for messages.
      by_line: whether values are positions.
      background: the name of the background; by default any spelling of "background"; False if
        there is none.

    Raises:
      ValueError: no class, too many, or a name, value or colour twice.
    """
    kept = [(str(name).strip(), value) for name, value in entries]
    _check_unique([(key_of(n), n) for name, _ in kept for n in synonyms(name)], where, "name")
    _check_unique([(value, str(value)) for _, value in kept], where, "value")
    if len({isinstance(value, tuple) for _, value in kept}) > 1:
        raise ValueError(f"{where}: values and colours found, expected one of the two")
    if not all(synonyms(name) for name, _ in kept):
        raise ValueError(f"{where}: a class without a name found")
    nothing = [value for name, value in kept if _spelt(name, _UNLABELLED)]
    behind = [value for name, value in kept if _is_background(name, background)]
    if isinstance(background, str) and not behind:
        raise ValueError(f"{where}: background {background!r} is none of the classes")
    # Two spellings of the background would be one class.
    _check_unique([(0, "background") for _ in behind], where, "name")
    rest = [(name, value) for name, value in kept if value not in (*nothing, *behind)]
    if not 0 < len(rest) + len(behind) <= _MOST or not rest:
        found = len(rest) + len(behind)
        raise ValueError(f"{where}: {found} names found, expected 1 to {_MOST} beside a background")
    classes = {value: i + len(behind) for i, (_, value) in enumerate(rest)}
    classes |= dict.fromkeys(behind, 0) | dict.fromkeys(nothing, IGNORED)
    shown = {value: name for name, value in kept}
    names = tuple("|".join(synonyms(name)) for name, _ in rest)
    return ClassList(names, bool(behind), classes, shown, by_line, where)


def with_background(classes: ClassList, background: str | bool) -> ClassList:
    """Return the list with another background, as a description names it."""
    entries = [(name, value) for value, name in classes.shown.items()]
    return make_class_list(entries, classes.where, by_line=classes.by_line, background=background)


def _is_background(name: str, wanted: str | bool | None) -> bool:
    if isinstance(wanted, str):
        return key_of(wanted) in {key_of(n) for n in synonyms(name)}
    return wanted is not False and _spelt(name, _BACKGROUND)


def _spelt(name: str, spellings: set[str]) -> bool:
    """Return whether one of the names of a class is such a word, however it is spelt."""
    return any(re.sub(r"[\W_]", "", n.casefold()) in spellings for n in synonyms(name))


def _check_unique(found: Sequence[tuple[Any, str]], where: str, what: str) -> None:
    seen: set[Any] = set()
    for key, shown in found:
        if key in seen:
            raise ValueError(f"{where}: {shown!r} found twice, expected each {what} once")
        seen.add(key)
