"""Files of the preparation, local or in a bucket (gs://, s3://): read whole, written atomically."""

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from groupvit_jax.data.storage.objects import is_remote

__all__ = ["INCOMPLETE", "array_bytes", "check_store", "json_bytes", "local_copy", "publish"]
__all__ += ["read_array", "read_json", "sha256", "written_complete"]

INCOMPLETE = ".incomplete-"  # followed by a unique name: two workers may write the same file


def check_store(flag: str, path: str) -> None:
    """Raise ValueError for a store that epath can't reach here."""
    if path.startswith("s3://") and importlib.util.find_spec("tensorflow"):
        raise ValueError(
            f"--{flag}={path}: expected gs:// or a folder, or an environment without TensorFlow, "
            "whose file system has no s3:// and takes the place of s3fs where it is installed"
        )


@contextlib.contextmanager
def local_copy(path: epath.PathLike) -> Iterator[str]:
    """Yield a local path: the file itself, or a temporary copy of a remote one."""
    if not is_remote(os.fspath(path)):
        yield os.fspath(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, "file")
        epath.Path(path).copy(copy)
        yield copy


@contextlib.contextmanager
def written_complete(target: epath.Path) -> Iterator[str]:
    """Yield a local path to write to; on success the file becomes `target` atomically."""
    name = f"{target.name}{INCOMPLETE}{uuid.uuid4().hex}"
    folder = tempfile.gettempdir() if is_remote(os.fspath(target)) else os.fspath(target.parent)
    local = os.path.join(folder, name)
    try:
        yield local
        if is_remote(os.fspath(target)):
            epath.Path(local).copy(target, overwrite=True)
        else:
            _sync(local)  # after a power failure, there is the complete file or none
            os.replace(local, target)
    finally:
        Path(local).unlink(missing_ok=True)


def _sync(path: str) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def publish(target: epath.Path, content: bytes) -> None:
    """Write a small file atomically."""
    with written_complete(target) as local:
        Path(local).write_bytes(content)


def sha256(path: epath.PathLike) -> str:
    """Return a file's checksum, as sha256sum prints it."""
    with local_copy(path) as local, open(local, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_bytes(value: Any) -> bytes:
    """Encode a value as readable JSON."""
    return (json.dumps(value, indent=1) + "\n").encode()


def read_json(path: epath.Path) -> Any:
    """Parse a JSON file.

    Raises:
      ValueError: it can't be parsed; the message names the file.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: damaged JSON: {error}") from error


def array_bytes(array: np.ndarray) -> bytes:
    """Encode an array as a .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def read_array(path: epath.Path) -> np.ndarray:
    """Read a .npy file."""
    return np.load(io.BytesIO(path.read_bytes()))
