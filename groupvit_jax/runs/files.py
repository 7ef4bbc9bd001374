"""Small files, read and written whole."""

import json
import os
import uuid
from pathlib import Path
from typing import Any


def read_json(path: Path, expected: str = "an object") -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
      path: the file.
      expected: its content, for the error message.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it holds no JSON object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}; expected {expected}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: a JSON {type(value).__name__}, expected {expected}")
    return value


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, the whole file or nothing."""
    replace_text(path, json.dumps(value, indent=2) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, the whole file or nothing."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a file, the whole file or nothing.

    A rename is atomic, so a reader, or a start after a kill, sees the old file or the new one. The
    temporary name is unique: processes of several hosts may write the same file at once.
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # else a crash may keep the rename and lose the content
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
