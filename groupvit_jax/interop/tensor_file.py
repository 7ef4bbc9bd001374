"""JSON and safetensors files, with errors that name the file and the tensor."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it holds no JSON object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: a JSON {type(value).__name__}, expected an object")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a JSON object for people to read."""
    path.write_text(json.dumps(value, indent=2) + "\n")


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Reads every tensor of a file.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: naming the tensor, if the file is truncated or contradicts itself.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: {_first_wrong(path) or error}") from error


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None
) -> None:
    """Writes tensors, in row-major order, with the permissions of any other new file."""
    contiguous = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    path.write_bytes(save(contiguous, metadata))


def _first_wrong(path: Path) -> str:
    """The first tensor whose bytes aren't in the file, which the library doesn't name."""
    content = path.read_bytes()
    try:
        (length,) = struct.unpack_from("<Q", content)
        header = json.loads(content[8 : 8 + length])
    except (struct.error, ValueError):
        return "truncated, the description of its tensors is incomplete"
    available = len(content) - 8 - length
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        _, end = entry["data_offsets"]
        if end > available:
            return f"tensor {name!r} ends at byte {end} of {available} that the file has"
    return ""
