"""Patterns of files: comma-separated lists of braces ({0000..0331}, {a,b}) and globs."""

import glob
import itertools
import os
import re
from collections.abc import Iterator

from groupvit_jax.data.storage import objects
from groupvit_jax.data.storage.retries import StorageError

# LAION-5B has 231,000 shards; a mistyped range easily has billions.
MAX_FILES = 2**18
MAX_BRACES = 20


def expand_pattern(pattern: str, field: str) -> list[str]:
    """Expand a comma-separated list of brace ({0000..0331}, {a,b}) and glob patterns.

    Args:
      pattern: e.g. "cc3m/{0000..0331}.tar,s3://bucket/cc12m/*.tar".
      field: the configuration field of the pattern, for messages.

    Raises:
      FileNotFoundError: a pattern matches nothing, or a bucket or a listed local file doesn't
        exist. Listed objects are checked later, by `tar_index.describe_shards`.
      ValueError: a store can't be listed, or the pattern stands for more than `MAX_FILES`.
    """
    if os.path.isfile(pattern):  # whatever is in its name
        return [pattern]
    paths: list[str] = []
    # At the commas outside of braces.
    for item in re.split(r",(?![^{]*\})", pattern):
        try:
            matches = _matches(item.strip())
        except StorageError as error:
            raise input_error(field, error) from error
        except ValueError as error:
            raise ValueError(f"{field}={pattern!r}: {error}") from error
        missing = [p for p in matches if not (objects.is_remote(p) or os.path.isfile(p))]
        if not matches or missing:
            raise FileNotFoundError(
                f"{field}={pattern!r}: {item.strip()!r} should name files, but "
                + (f"{missing[0]} {_why_no_file(missing[0])}" if missing else "no file matches it")
                + (f" (nor do {len(missing) - 1} others)" if len(missing) > 1 else "")
            )
        paths += matches
    return paths


def input_error(field: str, error: StorageError) -> Exception:
    """Return a storage's error as one that names the configuration field."""
    kind = FileNotFoundError if isinstance(error.__cause__, FileNotFoundError) else ValueError
    return kind(f"{field}: {error}")


def _why_no_file(path: str) -> str:
    if not os.path.exists(path):
        return "does not exist"
    return "is a folder" if os.path.isdir(path) else "is a device or a pipe"


def _matches(item: str) -> list[str]:
    if item.count("{") > MAX_BRACES:
        raise ValueError(f"more than {MAX_BRACES} braces")
    # Lazily: {0..999999999} would fill the memory before it could be counted.
    expanded = list(itertools.islice(_expand_braces(item), MAX_FILES + 1))
    if len(expanded) > MAX_FILES:
        raise ValueError(f"its braces stand for more than {MAX_FILES:,} files")
    return [match for path in expanded if path for match in _glob(os.path.expanduser(path))]


def _expand_braces(pattern: str) -> Iterator[str]:
    group = re.search(r"\{([^{}]*)\}", pattern)
    if not group:
        yield pattern
        return
    head, tail = pattern[: group.start()], pattern[group.end() :]
    for choice in _choices(group[1]):
        yield from _expand_braces(head + choice + tail)


def _choices(group: str) -> Iterator[str]:
    bounds = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", group)
    if not bounds:
        yield from group.split(",")
        return
    for number in range(int(bounds[1]), int(bounds[2]) + 1):
        yield f"{number:0{len(bounds[1])}d}"


def _glob(path: str) -> list[str]:
    if objects.is_remote(path):
        return objects.expand_glob(path) if glob.has_magic(path) else [path]
    # An existing file whose name contains brackets is not a pattern.
    if glob.has_magic(path) and not os.path.exists(path):
        return sorted(glob.glob(path))
    return [path]
