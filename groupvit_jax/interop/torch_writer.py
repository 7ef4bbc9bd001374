"""Writes tensors as a PyTorch zip file, readable with `torch.load(weights_only=True)`."""

import pickle
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from groupvit_jax.interop.torch_file import DTYPES

_STORAGES = {dtype: name for name, dtype in DTYPES.items()}
_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def write_torch_file(
    path: Path, tensors: Mapping[str, np.ndarray], texts: Mapping[str, str]
) -> None:
    """Write a dict with a state dict under "model", and text entries.

    Args:
      path: path of the new file.
      tensors: tensors by name in the state dict.
      texts: further entries.
    """
    arrays = [np.asarray(array, order="C") for array in tensors.values()]
    state = b"".join(
        _plain(name) + _tensor(str(i), array)
        for i, (name, array) in enumerate(zip(tensors, arrays, strict=True))
    )
    entries = _plain("model") + _ORDERED_DICT + b"(" + state + b"u"
    entries += b"".join(_plain(key) + _plain(value) for key, value in texts.items())
    with zipfile.ZipFile(path, "w") as archive:
        # Protocol 2, an empty dict and a mark, the entries, SETITEMS and STOP.
        _add(archive, "data.pkl", b"\x80\x02}(" + entries + b"u.")
        _add(archive, "byteorder", sys.byteorder.encode())
        for i, array in enumerate(arrays):
            _add(archive, f"data/{i}", array.tobytes())
        _add(archive, "version", b"3\n")


def _tensor(key: str, array: np.ndarray) -> bytes:
    """Return the opcodes that rebuild a contiguous tensor from the storage `key`."""
    storage_type = f"ctorch\n{_STORAGES[array.dtype]}\n".encode()
    storage = b"(" + _plain("storage") + storage_type + _plain(key) + _plain("cpu")
    # A tuple that becomes a persistent id, by which PyTorch finds the storage's member.
    storage += _plain(array.size) + b"tQ"
    strides = tuple(s // array.itemsize for s in array.strides)
    arguments = storage + _plain(0) + _plain(array.shape) + _plain(strides)
    arguments += _plain(False) + _ORDERED_DICT
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def _plain(value: Any) -> bytes:
    """Return the opcodes that build a number, a string or a tuple of them."""
    # Without the protocol's two bytes in front and STOP at the end.
    return pickle.dumps(value, protocol=2)[2:-1]


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a member with a fixed date, so that equal content gives equal files."""
    archive.writestr(zipfile.ZipInfo(f"archive/{name}", (1980, 1, 1, 0, 0, 0)), content)
