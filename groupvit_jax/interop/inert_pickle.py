"""Reads the tensor descriptions of a PyTorch pickle without executing anything in it.

A pickle is a program for a stack machine that can call any function. This reader interprets the
opcodes itself and supports three calls, which it turns into plain data: ordered dictionary, tensor
and parameter. Every other class, function or state in the file becomes an `Inert` placeholder.
"""

import pickletools
import re
from typing import Any, NamedTuple


class Inert:
    """A placeholder for an object that is not a tensor."""


class Global(NamedTuple):
    """The name of a class or function in the file; it is never resolved."""

    module: str
    name: str


class Storage(NamedTuple):
    """A tensor's memory: `numel` elements of type `dtype_name`, e.g. "FloatStorage"."""

    dtype_name: str
    key: str
    numel: int


class TensorView(NamedTuple):
    """A tensor as a view of a storage; offset and strides are in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


_ORDERED_DICT = Global("collections", "OrderedDict")
_REBUILD_TENSOR = Global("torch._utils", "_rebuild_tensor_v2")
_REBUILD_PARAMETER = Global("torch._utils", "_rebuild_parameter")
_MARK = object()
# Opcodes whose argument is the value.
_VALUES = re.compile(
    r"INT|BININT[12]?|LONG[14]?|FLOAT|BINFLOAT|BYTEARRAY8|UNICODE|(SHORT_)?BINUNICODE8?|"
    r"(SHORT_)?(BIN)?STRING|(SHORT_)?BINBYTES8?"
)
# Entries that calls of OrderedDict may copy, all together: a file can repeat a call with one list.
_MAX_COPIED = 2**22
# NumPy has no larger arrays; Python's integers have no limit.
_MAX_DIMENSIONS, _MAX_SIZE = 64, 2**48
# Hashing any other key could recurse into objects built by the file.
_KEYS = (str, int, float, bytes, type(None))


def read_pickle(content: bytes) -> Any:
    """Interpret a pickle.

    Returns:
      The object, made of dicts, lists, tuples, numbers, strings, `TensorView` and `Inert`.

    Raises:
      ValueError: the content doesn't start with a complete pickle of tensors.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.run(opcode.name, argument)
    except Exception as error:  # pickletools and our machine fail as they like on damaged bytes
        raise ValueError(f"not a pickle of tensors: {str(error)[:200] or repr(error)}") from error
    raise ValueError("the pickle has no end")


class _Machine:
    """The stack machine: stack, memo, and the effect of each opcode."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.num_copied = 0

    def run(self, name: str, argument: Any) -> None:
        """Execute one opcode."""
        stack, memo = self.stack, self.memo
        match name:
            case "PROTO" | "FRAME":
                pass
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "POP":
                stack.pop()
            case "POP_MARK":
                self.pop_to_mark()
            case "BUILD":
                stack.pop()  # the object's state
            case "APPEND":
                self.extend([stack.pop()])
            case "APPENDS" | "ADDITEMS":
                self.extend(self.pop_to_mark())
            case "SETITEM":
                self.update(self.pop(2))
            case "SETITEMS":
                self.update(self.pop_to_mark())
            case _:
                stack.append(self.make(name, argument))

    def make(self, name: str, argument: Any) -> Any:
        """Execute an opcode that pushes one object."""
        match name:
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                return {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name]
            case "MARK":
                return _MARK
            case "DUP":
                return self.stack[-1]
            case "EMPTY_LIST" | "EMPTY_TUPLE" | "EMPTY_DICT":
                return {"EMPTY_LIST": [], "EMPTY_TUPLE": (), "EMPTY_DICT": {}}[name]
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                return tuple(self.pop(int(name[-1])))
            case "TUPLE":
                return tuple(self.pop_to_mark())
            case "LIST":
                return self.pop_to_mark()
            case "DICT":
                return _make_dict(self.pop_to_mark())
            case "GLOBAL":
                return Global(*argument.split(" ", 1))
            case "STACK_GLOBAL":
                return Global(*self.pop(2))
            case "BINPERSID":
                return _make_storage(self.pop(1)[0])
            case "REDUCE":
                return self.call(*self.pop(2))
            case "NEWOBJ" | "NEWOBJ_EX":
                self.pop(2 if name == "NEWOBJ" else 3)
                return Inert()
            case "INST" | "OBJ" | "FROZENSET":
                self.pop_to_mark()
                return Inert()
            case "EMPTY_SET":
                return Inert()
        if _VALUES.fullmatch(name):
            return argument
        raise ValueError(f"not a pickle of tensors: instruction {name}")

    def pop(self, count: int) -> list[Any]:
        """Pop the last `count` items, in order."""
        return [self.stack.pop() for _ in range(count)][::-1]

    def pop_to_mark(self) -> list[Any]:
        """Pop the items since the last mark, and the mark."""
        items = list(iter(self.stack.pop, _MARK))
        return items[::-1]

    def extend(self, items: list[Any]) -> None:
        """Append to the list on top of the stack."""
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        """Add alternating keys and values to the dict on top of the stack."""
        if isinstance(self.stack[-1], dict):
            self.stack[-1].update(_make_dict(items))

    def call(self, function: Any, arguments: Any) -> Any:
        """Return what a call in the file gives: data for the three known ones, else `Inert`."""
        if function == _REBUILD_TENSOR:
            return _make_tensor(*arguments[:4])
        if function == _REBUILD_PARAMETER:
            return arguments[0]
        if function == _ORDERED_DICT:
            pairs = arguments[0] if arguments else []
            self.num_copied += len(pairs)
            if self.num_copied > _MAX_COPIED:
                raise ValueError(f"dictionaries of more than {_MAX_COPIED:,} entries")
            return {key: value for key, value in pairs if isinstance(key, _KEYS)}
        return Inert()


def _make_dict(items: list[Any]) -> dict:
    pairs = zip(items[::2], items[1::2], strict=True)
    return {key: value for key, value in pairs if isinstance(key, _KEYS)}


def _make_storage(persistent_id: Any) -> Storage:
    kind, dtype, key, _, numel = persistent_id
    known = isinstance(dtype, Global) and isinstance(dtype.name, str)
    if kind != "storage" or not (known and isinstance(key, str) and _is_size(numel)):
        raise ValueError("not a pickle of tensors: a persistent id that is no storage")
    return Storage(dtype.name, key, numel)


def _make_tensor(storage: Any, offset: Any, shape: Any, stride: Any) -> TensorView:
    tuples = isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride)
    sizes = tuples and len(shape) <= _MAX_DIMENSIONS
    sizes = sizes and all(map(_is_size, (offset, *shape, *stride)))
    if not (isinstance(storage, Storage) and sizes):
        raise ValueError("not a pickle of tensors: a tensor without storage, shape or strides")
    return TensorView(storage, offset, shape, stride)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < _MAX_SIZE
