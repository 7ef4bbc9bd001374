"""The border to files that others wrote: whatever is wrong with one names the file."""

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Turn every error about a file into a ValueError that names it.

    Libraries raise whatever a damaged or foreign file leads to: KeyError, struct.error, TypeError,
    RecursionError, ... All mean that the file is unusable; commands show them as one line. Our own
    FileNotFoundErrors, which say what was expected, stay.
    """
    try:
        yield
    except Exception as error:
        message = str(error)
        if isinstance(error, OSError) and error.errno is not None:
            message = f"can't be read ({error.strerror})"
        elif not isinstance(error, ValueError | OSError):
            message = f"damaged or of another kind ({type(error).__name__}: {message})"
        ours = isinstance(error, FileNotFoundError) and error.errno is None
        kind = FileNotFoundError if ours else ValueError
        raise kind(message if str(path) in message else f"{path}: {message}") from error
