"""Reads a compiled program's text: computations, their instructions, and how often each runs.

XLA's own cost analysis counts the body of a loop once. What runs in a loop over layers or
micro-batches would be missing, so the text is read here, with the loops' trip counts.
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
# What moves no bytes by itself.
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
_ON_CHIP = re.compile(r"S\([1-9]\)")


@dataclasses.dataclass(frozen=True)
class Buffer:
    """An array of the program, as one chip holds it.

    Attributes:
      dtype: XLA's name of it.
      shape: its sizes.
      on_chip: whether it lies in the chip's own fast memory instead of HBM.
    """

    dtype: str
    shape: tuple[int, ...]
    on_chip: bool = False

    @property
    def num_bytes(self) -> int:
        """Bytes without the padding of layouts."""
        return math.prod(self.shape) * ITEM_BITS.get(self.dtype, 0) // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of the program.

    Attributes:
      name: unique in its computation.
      opcode: XLA's name of the operation.
      outputs: one array, or those of a tuple.
      operands: names of instructions of the same computation.
      attributes: what follows the operands.
      argument: the text between the parentheses: of a parameter its number.
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
        """The path of JAX's functions and modules that it stems from; may be empty."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
      computations: by name.
      entry: name of the one that runs first.
      files: Python file of each frame of the stack, by number.
    """

    computations: dict[str, Computation]
    entry: str
    files: dict[int, str]

    def stems_from(self, instruction: Instruction, part: str) -> bool:
        """Returns whether a line of a Python file whose path has this part made the instruction."""
        found = re.search(r"stack_frame_id=(\d+)", instruction.attributes)
        return found is not None and part in self.files.get(int(found[1]), "")


@dataclasses.dataclass(frozen=True)
class Execution:
    """An instruction that runs.

    Attributes:
      instruction: the instruction.
      computation: the one it stands in.
      count: how often it runs in a step.
      loops: how many loops it stands in.
      is_fused: whether it is a part of a fusion, whose inner values never leave the chip.
    """

    instruction: Instruction
    computation: Computation
    count: int
    loops: int
    is_fused: bool


def parse_program(text: str) -> Program:
    """Returns what `compiled.as_text()` describes.

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


def executions(program: Program) -> Iterator[Execution]:
    """Yields every instruction that runs, the insides of loops and fusions included."""
    yield from _executions(program, program.entry, 1, 0, False)


def _executions(
    program: Program, name: str, count: int, loops: int, is_fused: bool
) -> Iterator[Execution]:
    computation = program.computations[name]
    for instruction in computation.values():
        yield Execution(instruction, computation, count, loops, is_fused)
        is_loop = instruction.opcode == "while"
        times = count * (trip_count(program, instruction) if is_loop else 1)
        inside = is_fused or instruction.opcode == "fusion"
        for called in called_computations(instruction):
            if called in program.computations:
                yield from _executions(program, called, times, loops + is_loop, inside)


def called_computations(instruction: Instruction) -> list[str]:
    """Returns the computations that an instruction runs; not the scalar ones of reductions."""
    if "=" not in instruction.attributes:
        return []
    names = [name for match in _CALLED.finditer(instruction.attributes)
             for name in _NAME.findall(match[2])]  # fmt: skip
    if instruction.opcode == "call":
        names += re.findall(r"to_apply=%([\w.\-]+)", instruction.attributes)
    return names


def trip_count(program: Program, loop: Instruction) -> int:
    """Returns how often a loop's body runs; 1 where the program doesn't say."""
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
    """Reads the tables that precede the computations; without them there are no frames."""
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
    return Buffer(match[1], shape, bool(match[3] and _ON_CHIP.search(match[3])))


def _closing(text: str, start: int) -> int:
    """The position of the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"compiled program: unbalanced parentheses in {text[start : start + 80]!r}")
