"""Reads PyTorch's zip files of tensors without PyTorch and without executing code from them.

Such a file contains `ROOT/data.pkl`, a pickle that describes the tensors, and `ROOT/data/KEY`, the
memory of each storage. PyTorch never compresses members, so a compressed member is refused.
"""

import math
import mmap
import re
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from groupvit_jax.interop.inert_pickle import TensorView, read_pickle

DTYPES: dict[str, np.dtype] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "FloatStorage": np.float32,
        "DoubleStorage": np.float64,
        "HalfStorage": np.float16,
        "BFloat16Storage": ml_dtypes.bfloat16,
        "LongStorage": np.int64,
        "IntStorage": np.int32,
        "ShortStorage": np.int16,
        "CharStorage": np.int8,
        "ByteStorage": np.uint8,
        "BoolStorage": np.bool_,
    }.items()
}
_MAX_PICKLE_BYTES = 1 << 28
# Tied weights are views of one storage, so that tensors may take more than their file; a small
# file of many views would fill any memory.
_MAX_SHARING = 4
# Errors that zipfile raises for inconsistent files.
_DAMAGES = (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, struct.error)
_ENCRYPTED = 0x61  # flags of encrypted or patched zip members
_LEGACY_START = (
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # PyTorch's legacy format: a pickled magic number
)


# Where trainers put the state dict, in order: the original GroupViT and timm, Lightning and mmcv,
# DeepSpeed, and others; averaged weights only if there are no others.
_ENTRIES = (
    *("model", "state_dict", "module", "model_state_dict", "model_state", "net", "network"),
    *("weights", "model_ema", "ema_model", "ema_state_dict", "ema"),
)
_WRAPPED = 3  # entries within entries


def read_torch_file(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the tensors of a state dict, at the top level or where trainers put it.

    Returns:
      The tensors by name, and the file's object with `Inert` in place of anything but data.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not a complete PyTorch zip file; the message names the tensor.
    """
    _check_format(path)
    with _open(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError(f"{path}: {len(roots)} members named data.pkl, expected one")
        reader = _Reader(path, archive, members, roots[0])
        content = reader.describe()
        views = tensor_views(content)
        if not views:
            raise ValueError(f"{path}: holds no state dict; found {_describe(content)}")
        num_bytes = sum(map(_num_bytes, views.values()))
        if num_bytes > _MAX_SHARING * (path.stat().st_size + 1):
            raise ValueError(
                f"{path}: {len(views)} tensors take {num_bytes:,} bytes, more than {_MAX_SHARING} "
                "times the file"
            )
        return {name: reader.tensor(name, view) for name, view in views.items()}, content


def _num_bytes(view: TensorView) -> int:
    dtype = DTYPES.get(view.storage.dtype_name, np.dtype(np.uint8))
    return math.prod(view.shape) * dtype.itemsize


def tensor_views(content: Any) -> dict[str, TensorView]:
    """Return the tensors of the state dict in a file, without the names of what wraps it."""
    return _views(content, _WRAPPED)


def _views(content: Any, depth: int) -> dict[str, TensorView]:
    if not isinstance(content, dict):
        return {}
    for entry in _ENTRIES if depth else ():
        if found := _views(content.get(entry), depth - 1):
            return found
    return {str(name): view for name, view in content.items() if isinstance(view, TensorView)}


def without_prefix(tensors: Mapping[str, np.ndarray], anchors: Sequence[str]) -> dict[str, Any]:
    """Return tensors without what a wrapper wrote before every name, e.g. `module.`, `model.`.

    Args:
      tensors: by name.
      anchors: names of which a model has one; what stands before it is the prefix. Tensors without
        the prefix, of another part of the wrapper, are left out.
    """
    for anchor in anchors:
        ends = [name for name in tensors if name == anchor or name.endswith(f".{anchor}")]
        if prefixes := sorted({name.removesuffix(anchor) for name in ends}, key=len):
            prefix = prefixes[0]
            return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    return dict(tensors)


def describe_tensors(tensors: Mapping[str, Any], few: int = 4) -> str:
    """Return what a file holds, for messages: the first names with their shapes."""
    shown = ", ".join(f"{name} {tuple(t.shape)}" for name, t in list(tensors.items())[:few])
    return f"{len(tensors)} tensors ({shown}{', ...' if len(tensors) > few else ''})"


def _describe(content: Any) -> str:
    if not isinstance(content, dict):
        return (
            "a whole object and not its tensors: save model.state_dict() where its code is at hand"
        )
    entries = ", ".join(f"{key!r}: {type(value).__name__}" for key, value in content.items())
    return f"the entries {{{entries[:300]}}}"


def _check_format(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(_LEGACY_START) or start[257:262] == b"ustar":
        raise ValueError(
            f"{path}: PyTorch's legacy format, expected its zip format. If you trust the file, "
            "whose code will run, save it again with PyTorch: torch.save(torch.load("
            f"{path.name!r}, map_location='cpu', weights_only=False), 'new.pth')"
        )
    if not start.startswith(b"PK\x03\x04"):
        raise ValueError(f"{path}: not a file of PyTorch's zip format")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: truncated, {_first_incomplete(path)}")


def _open(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except _DAMAGES as error:
        raise ValueError(f"{path}: its directory is damaged: {error}") from error


class _Reader:
    """Reads members of an open archive after validating them."""

    def __init__(
        self,
        path: Path,
        archive: zipfile.ZipFile,
        members: Mapping[str, zipfile.ZipInfo],
        root: str,
    ) -> None:
        self.path, self.archive, self.members, self.root = path, archive, members, root
        order = f"{root}byteorder"
        self.swapped = order in members and self.read(order, "byte order") != b"little"

    def describe(self) -> Any:
        """Return the content of data.pkl."""
        name = f"{self.root}data.pkl"
        if self.members[name].file_size > _MAX_PICKLE_BYTES:
            raise ValueError(f"{self.path}: {name} is larger than {_MAX_PICKLE_BYTES} bytes")
        content = self.read(name, "description of the tensors")
        try:
            return read_pickle(content)
        except ValueError as error:
            raise ValueError(f"{self.path}: {name}: {error}") from error

    def tensor(self, name: str, view: TensorView) -> np.ndarray:
        """Return the values of a tensor in row-major order."""
        dtype, what = DTYPES.get(view.storage.dtype_name), f"tensor {name!r}"
        if dtype is None:
            raise ValueError(f"{self.path}: {what} is of the unknown {view.storage.dtype_name}")
        numel = view.storage.numel
        # The last element that the strides reach.
        last = view.offset + sum((n - 1) * s for n, s in zip(view.shape, view.stride, strict=True))
        size = math.prod(view.shape)
        if size and (last >= numel or size > numel):
            raise ValueError(
                f"{self.path}: {what} has shape {view.shape} and strides {view.stride} from "
                f"element {view.offset}, but its storage has only {numel} elements"
            )
        member = f"{self.root}data/{view.storage.key}"
        self.check(member, what, numel * dtype.itemsize)
        memory = np.frombuffer(self.read(member, what), dtype)
        if self.swapped:
            memory = memory.view(f"u{dtype.itemsize}").byteswap().view(dtype)
        strides = [stride * dtype.itemsize for stride in view.stride]
        if not size:
            return np.zeros(view.shape, dtype)
        strided = np.lib.stride_tricks.as_strided(memory[view.offset :], view.shape, strides)
        return np.array(strided, order="C")

    def check(self, member: str, what: str, num_bytes: int | None = None) -> None:
        """Raise ValueError if a member is missing, compressed, or not `num_bytes` long."""
        info = self.members.get(member)
        if info is None:
            raise ValueError(f"{self.path}: {what}: member {member!r} is missing")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & _ENCRYPTED:
            raise ValueError(f"{self.path}: {what}: member {member!r} is compressed or encrypted")
        if num_bytes is not None and info.file_size != num_bytes:
            raise ValueError(
                f"{self.path}: {what}: member {member!r} holds {info.file_size} bytes, "
                f"expected {num_bytes}"
            )

    def read(self, member: str, what: str) -> bytes:
        """Return the bytes of a member; it is uncompressed, so no longer than the file."""
        try:
            self.check(member, what)
            return self.archive.read(member)
        except _DAMAGES as error:
            raise ValueError(f"{self.path}: {what} is damaged: {error}") from error


def _first_incomplete(path: Path) -> str:
    """Locate the break in a truncated file, which lacks the directory at its end."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if len(data) < 30:
            return "its first header is incomplete"
        name_length, extra_length = struct.unpack("<HH", data[26:30])
        name = data[30 : 30 + name_length]
        content = data[30 + name_length + extra_length :]
        try:
            views = tensor_views(read_pickle(content)) if name.endswith(b"/data.pkl") else {}
        except ValueError:
            return "the description of its tensors is incomplete"
        root = name.removesuffix(b"data.pkl")
        for tensor, view in views.items():
            begin = _local_member(data, root + f"data/{view.storage.key}".encode())
            itemsize = DTYPES.get(view.storage.dtype_name, np.dtype(np.uint8)).itemsize
            if begin is None or begin + view.storage.numel * itemsize > len(data):
                return f"tensor {tensor!r} is incomplete"
        return "its directory is missing"


def _local_member(data: mmap.mmap, name: bytes) -> int | None:
    """Return the offset of a zip member's content, from its local header."""
    pattern = rb"PK\x03\x04.{22}" + re.escape(struct.pack("<H", len(name))) + b"(..)"
    match = re.search(pattern + re.escape(name), data, re.DOTALL)
    return match and match.end() + struct.unpack("<H", match[1])[0]
