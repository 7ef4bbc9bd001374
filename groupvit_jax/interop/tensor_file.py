"""Safetensors files, with errors that name the file and the tensor."""

import collections
import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from groupvit_jax.runs.files import read_json

_MAX_HEADER_BYTES = 100_000_000  # the library's own limit


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Read every tensor of a file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is truncated or inconsistent; the message names the tensor.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError, ValueError, AttributeError) as error:  # unknown types
        raise ValueError(f"{path}: {_first_wrong(path) or error}") from error


def read_sharded_safetensors(index: Path) -> dict[str, np.ndarray]:
    """Read sharded tensors listed in Hugging Face's `model.safetensors.index.json`.

    Args:
      index: path of the index; its `weight_map` gives the file of each tensor in the same folder.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file name is a path, a file is damaged, or a tensor is missing from its file.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: no 'weight_map', expected the file of each tensor")
    names = collections.defaultdict(list)
    for name, file in weight_map.items():
        # Reject paths outside this directory.
        if not isinstance(file, str) or not re.fullmatch(r"[\w.-]+\.safetensors", file):
            raise ValueError(
                f"{index}: {file!r} found for tensor {name!r}, expected the name of a .safetensors "
                "file beside it"
            )
        names[file].append(name)
    if missing := [file for file in names if not (index.parent / file).is_file()]:
        raise FileNotFoundError(
            f"{index.parent / missing[0]}: no such file, but {index.name} places "
            f"{len(names[missing[0]])} tensors in it ({len(missing)} of {len(names)} files missing)"
        )
    tensors = {}
    for file, placed in names.items():
        found = read_safetensors(index.parent / file)
        for name in placed:
            if name not in found:
                raise ValueError(
                    f"{index.parent / file}: tensor {name!r} is missing, but {index.name} places "
                    "it there"
                )
            tensors[name] = found[name]
    return tensors


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors in row-major order, with default file permissions."""
    contiguous = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    path.write_bytes(save(contiguous, metadata))


def _first_wrong(path: Path) -> str:
    """Return the first tensor with bytes beyond the file, which the library doesn't name."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, _MAX_HEADER_BYTES)))
        available = path.stat().st_size - 8 - length
        ends = [(e["data_offsets"][1], n) for n, e in header.items() if n != "__metadata__"]
        end, name = min((found for found in ends if found[0] > available), default=(0, ""))
    except (struct.error, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return "truncated or damaged, the description of its tensors is incomplete"
    return f"tensor {name!r} ends at byte {end} of {available} that the file has" if name else ""
