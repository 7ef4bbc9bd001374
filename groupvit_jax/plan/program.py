"""Parser of optimised HLO text: computations, their instructions, and how often each runs.

XLA's own cost analysis counts the body of a loop once, so it misses most of a program that loops
over layers or micro-batches. The text names the trip count of each loop; it is read here instead.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

ITEM_BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "f8e4m3fn": 8, "f8e5m2": 8,
    "s16": 16, "u16": 16, "f16": 16, "bf16": 16, "s32": 32, "u32": 32, "f32": 32,
    "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
# Bookkeeping of the program: these instructions neither compute nor move data.
FREE = frozenset(
    ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "iota",
     "conditional", "after-all", "partition-id", "replica-id", "opt-barrier", "domain")
)  # fmt: skip

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"(calls|body|condition|true_computation|false_computation|branch_computations|called_computations)"
    r"=(\{[^}]*\}|%[\w.\-]+)"
)
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# Memory space 0 is HBM; the others are vector memory, scalar memory and synchronisation flags.
_ON_CHIP = re.compile(r"S\([1-9]\)")
# {minor to major:T(tile)(tile of the tile)...}
_TILED = re.compile(r"\{([\d,]*):T\(([\d,]+)\)(?:\(([\d,]+)\))?")


@dataclasses.dataclass(frozen=True)
class Buffer:
    """An array of the program, as one chip holds it.

    Attributes:
      dtype: XLA's name of it.
      shape: its sizes.
      on_chip: whether it lies in the chip's own fast memory instead of HBM.
      layout: XLA's text of it, e.g. "{1,0:T(8,128)(2,1)}"; empty if the program gives none.
    """

    dtype: str
    shape: tuple[int, ...]
    on_chip: bool = False
    layout: str = ""

    @property
    def num_bytes(self) -> int:
        """Bytes of the values, without the padding of tiles."""
        return math.prod(self.shape) * ITEM_BITS.get(self.dtype, 0) // 8

    @property
    def stored_bytes(self) -> int:
        """Bytes that the array takes up in memory, where a TPU pads it to whole tiles.

        A float32 array of 260 x 260 in tiles of (8, 128) lies there as 264 x 384.
        """
        if not self.shape or (found := _TILED.match(self.layout)) is None:
            return self.num_bytes
        order, tile, inner = (_integers(group) for group in found.groups())
        sizes = [self.shape[d] for d in order]  # the minor dimension first, like `tile` reversed
        # An inner tile packs rows of 16 and 8 bit types into words, so it pads the outer tile.
        for i, pack in enumerate(reversed(inner)):
            tile[-1 - i] = _round_up(tile[-1 - i], pack)
        for i, side in enumerate(reversed(tile)):
            if i < len(sizes):
                sizes[i] = _round_up(sizes[i], side)
        return math.prod(sizes) * ITEM_BITS.get(self.dtype, 0) // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction of the program: one line of its text.

    Attributes:
      name: unique in its computation.
      opcode: XLA's name of the operation.
      outputs: the array it returns, or the arrays of a tuple, nested ones flattened.
      operands: names of instructions of the same computation.
      attributes: the text after the operands.
      argument: the text between the parentheses; the number of a parameter.
      is_root: whether its computation returns it.
    """

    name: str
    opcode: str
    outputs: tuple[Buffer, ...]
    operands: tuple[str, ...]
    attributes: str
    argument: str
    is_root: bool

    @property
    def op_name(self) -> str:
        """The path of JAX functions and modules that it stems from; may be empty."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
      computations: by name.
      entry: name of the computation that runs first.
      files: Python file of each frame of the stack, by number.
    """

    computations: dict[str, Computation]
    entry: str
    files: dict[int, str]

    def stems_from(self, instruction: Instruction, part: str) -> bool:
        """Return whether the instruction was traced from a Python file with `part` in its path."""
        found = re.search(r"stack_frame_id=(\d+)", instruction.attributes)
        return found is not None and part in self.files.get(int(found[1]), "")


@dataclasses.dataclass(frozen=True)
class ExecutedInstruction:
    """An instruction that runs.

    Attributes:
      instruction: the instruction.
      computation: the computation that contains it.
      count: how often it runs in a step.
      loops: number of loops around it.
      is_fused: whether it is inside a fusion or an asynchronous operation. Only the outer
        instruction touches memory; the values inside a fusion never leave the chip.
    """

    instruction: Instruction
    computation: Computation
    count: int
    loops: int
    is_fused: bool


def parse_program(text: str) -> Program:
    """Parse the text that `compiled.as_text()` returns.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is not None and (match := _INSTRUCTION.match(line)):
            instruction = _parse_instruction(match[2], match[3], match[1] is not None)
            current[instruction.name] = instruction
        elif line.startswith("}"):
            current = None
        elif match := _HEADER.match(line):
            current = computations.setdefault(match[2], {})
            entry = match[2] if match[1] else entry
    if entry not in computations:
        raise ValueError("compiled program: no ENTRY computation found, expected XLA's HLO text")
    return Program(computations, entry, _files_of_frames(text))


def executions(program: Program) -> Iterator[ExecutedInstruction]:
    """Yield every instruction that runs, those inside loops and fusions included."""
    yield from _executions(program, program.entry, 1, 0, False)


def _executions(
    program: Program, name: str, count: int, loops: int, is_fused: bool
) -> Iterator[ExecutedInstruction]:
    computation = program.computations[name]
    for instruction in computation.values():
        yield ExecutedInstruction(instruction, computation, count, loops, is_fused)
        is_loop = instruction.opcode == "while"
        times = count * (trip_count(program, instruction) if is_loop else 1)
        inside = is_fused or instruction.opcode == "fusion" or is_asynchronous(instruction)
        for called in called_computations(instruction):
            if called in program.computations:
                yield from _executions(program, called, times, loops + is_loop, inside)


def is_asynchronous(instruction: Instruction) -> bool:
    """Return whether it starts, continues or ends an operation that runs beside others."""
    return instruction.opcode.endswith(("-start", "-update", "-done"))


def called_computations(instruction: Instruction) -> list[str]:
    """Return the computations that an instruction runs, without the scalar ones of reductions."""
    if "=" not in instruction.attributes or instruction.opcode.endswith(("-update", "-done")):
        return []  # an asynchronous operation names its computation again where it ends
    names = [name for match in _CALLED.finditer(instruction.attributes)
             for name in _NAME.findall(match[2])]  # fmt: skip
    if instruction.opcode == "call":
        names += re.findall(r"to_apply=%([\w.\-]+)", instruction.attributes)
    return names


def trip_count(program: Program, loop: Instruction) -> int:
    """Return how often the body of a loop runs; 1 if the program doesn't say."""
    if known := _TRIP_COUNT.search(loop.attributes):
        return int(known[1])
    condition = re.search(r"condition=%([\w.\-]+)", loop.attributes)
    limits = [
        int(instruction.argument)
        for instruction in program.computations[condition[1]].values()
        if instruction.opcode == "constant" and instruction.argument.isdigit()
    ] if condition else []  # fmt: skip
    return max(limits, default=1)


def _files_of_frames(text: str) -> dict[int, str]:
    """Read the tables of stack frames before the computations, if the text has them."""
    names = dict(re.findall(r'^(\d+) "([^"]*)"$', _table(text, "FileNames"), re.M))
    table = _table(text, "FileLocations")
    locations = dict(re.findall(r"^(\d+) \{file_name_id=(\d+)", table, re.M))
    frames = re.findall(r"^(\d+) \{file_location_id=(\d+)", _table(text, "StackFrames"), re.M)
    return {int(frame): names[locations[location]] for frame, location in frames}


def _table(text: str, name: str) -> str:
    found = re.search(rf"^{name}\n((?:\d+ .*\n)*)", text, re.M)
    return found[1] if found else ""


def _parse_instruction(name: str, text: str, is_root: bool) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opcode, _, rest = text[end:].lstrip().partition("(")
    close = _closing(f"({rest}", 0) - 1
    return Instruction(
        name=name,
        opcode=opcode,
        outputs=tuple(map(_buffer, _ARRAY.finditer(text[:end]))),
        operands=tuple(_NAME.findall(rest[:close])),
        attributes=rest[close + 1 :],
        argument=rest[:close],
        is_root=is_root,
    )


def _buffer(match: re.Match[str]) -> Buffer:
    shape = tuple(int(size) for size in match[2].split(",") if size)
    layout = match[3] or ""
    return Buffer(match[1], shape, _ON_CHIP.search(layout) is not None, layout)


def _integers(text: str | None) -> list[int]:
    return [int(size) for size in (text or "").split(",") if size]


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _closing(text: str, start: int) -> int:
    """Return the position of the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"compiled program: unbalanced parentheses in {text[start : start + 80]!r}")
