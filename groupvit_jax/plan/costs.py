"""What a compiled program costs a chip: matrix FLOPs and bytes to and from its memory."""

import math
import re

from groupvit_jax.plan.program import (
    FREE,
    Buffer,
    Computation,
    Execution,
    Instruction,
    Program,
    called_computations,
    executions,
)

_DIMENSIONS = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_SLICES = ("dynamic-slice", "gather", "slice")


def matrix_flops(program: Program) -> int:
    """Returns the FLOPs of a step's products and convolutions on one chip."""
    return sum(
        run.count * _flops(run)
        for run in executions(program)
        if run.instruction.opcode in ("dot", "convolution")
    )


def logits_bytes(program: Program, embedding_dim: int) -> int:
    """Returns the bytes of the largest logits that one chip holds at once; 0 if there are none.

    Args:
      program: of a training step.
      embedding_dim: of the joint space: logits are the loss's products over it.
    """
    return max(
        (
            run.instruction.outputs[0].num_bytes
            for run in executions(program)
            if run.instruction.opcode in ("dot", "convolution")
            if program.stems_from(run.instruction, "groupvit_jax/losses/")
            # A sigmoid's bias takes part as one dimension more.
            if _contracted(run) in (embedding_dim, embedding_dim + 1)
        ),
        default=0,
    )


def memory_traffic(program: Program) -> int:
    """Returns the bytes that a step reads from and writes to one chip's HBM.

    Every instruction reads its operands and writes its outputs; a fusion's inner values and arrays
    in the chip's own memory are free. Of an operand that is only sliced, the slice counts.
    """
    return sum(
        run.count * _traffic(program, run)
        for run in executions(program)
        if not run.is_fused and run.instruction.opcode not in FREE
    )


def _flops(run: Execution) -> int:
    instruction, computation = run.instruction, run.computation
    lhs, rhs = (computation[name].outputs[0].shape for name in instruction.operands[:2])
    out = instruction.outputs[0].shape
    if instruction.opcode == "dot":
        match = _DIMENSIONS.search(instruction.attributes)
        dims = [int(d) for d in match[1].split(",") if d] if match else []
        return 2 * math.prod(out) * math.prod(lhs[d] for d in dims)
    return _convolution_flops(instruction.attributes, lhs, rhs, out)


def _contracted(run: Execution) -> float:
    return _flops(run) / (2 * max(math.prod(run.instruction.outputs[0].shape), 1))


def _convolution_flops(
    attributes: str, lhs: tuple[int, ...], rhs: tuple[int, ...], out: tuple[int, ...]
) -> int:
    """Counts the pairs of input and kernel that meet: batched products are convolutions too."""
    match = _LABELS.search(attributes)
    if match is None:
        raise ValueError(f"compiled program: convolution without dim_labels: {attributes[:80]!r}")
    lhs_labels, rhs_labels, out_labels = match.groups()
    found = _WINDOW.search(attributes)
    window = dict(field.split("=", 1) for field in found[1].split()) if found else {}
    flops = 2 * out[out_labels.index("b")] * out[out_labels.index("f")]
    flops *= rhs[rhs_labels.index("i")]
    for i, label in enumerate(c for c in out_labels if c.isdigit()):
        flops *= _pairs(
            size=lhs[lhs_labels.index(label)],
            kernel=rhs[rhs_labels.index(label)],
            out=out[out_labels.index(label)],
            stride=_entry(window, "stride", i, 1),
            padding=_entry(window, "pad", i, 0),
            lhs_dilation=_entry(window, "lhs_dilate", i, 1),
            rhs_dilation=_entry(window, "rhs_dilate", i, 1),
        )
    return flops


def _pairs(
    *, size: int, kernel: int, out: int, stride: int, padding: int, lhs_dilation: int,
    rhs_dilation: int,
) -> int:  # fmt: skip
    """How many (output, kernel) positions of one dimension fall on an input, not on padding."""
    last = (size - 1) * lhs_dilation
    count = 0
    for k in range(kernel):
        for o in range(out):
            position = o * stride + k * rhs_dilation - padding
            count += 0 <= position <= last and position % lhs_dilation == 0
    return count


def _entry(window: dict[str, str], field: str, i: int, default: int) -> int:
    if field not in window:
        return default
    return int(window[field].split("x")[i].split("_")[0])


def _traffic(program: Program, run: Execution) -> int:
    instruction, computation = run.instruction, run.computation
    if instruction.opcode.endswith(("-done", "-update")):
        return 0
    outputs = [_size(buffer) for buffer in instruction.outputs]
    if instruction.opcode in _SLICES:
        return 2 * sum(outputs)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * sum(map(_size, computation[instruction.operands[1]].outputs))
    operands = [sum(map(_size, computation[name].outputs)) for name in instruction.operands]
    if instruction.opcode == "fusion":
        inner = program.computations[called_computations(instruction)[0]]
        operands = _fusion_reads(inner, operands)
        outputs = _fusion_writes(inner, outputs)
    return sum(operands) + sum(outputs)


def _fusion_reads(inner: Computation, operands: list[int]) -> list[int]:
    """Bytes read of each operand: where a fusion only slices it, the slices."""
    users: dict[str, list[Instruction]] = {}
    for instruction in inner.values():
        for name in instruction.operands:
            users.setdefault(name, []).append(instruction)
    reads = list(operands)
    for instruction in inner.values():
        if instruction.opcode == "parameter" and (found := users.get(instruction.name)):
            read = [_read_of(instruction.name, user, inner) for user in found]
            number = int(instruction.argument)
            if number < len(reads) and None not in read:
                reads[number] = min(reads[number], sum(size or 0 for size in read))
    return reads


def _read_of(name: str, user: Instruction, inner: Computation) -> int | None:
    if user.opcode in _SLICES and user.operands[0] == name:
        return sum(map(_size, user.outputs))
    if user.opcode == "dynamic-update-slice" and user.operands[0] == name:
        return 0  # updated in place
    return None


def _fusion_writes(inner: Computation, outputs: list[int]) -> list[int]:
    root = next(instruction for instruction in inner.values() if instruction.is_root)
    roots = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if len(roots) != len(outputs):
        return outputs
    return [
        sum(map(_size, inner[root.operands[1]].outputs))
        if root.opcode == "dynamic-update-slice"
        else size
        for root, size in zip(roots, outputs, strict=True)
    ]


def _size(buffer: Buffer) -> int:
    return 0 if buffer.on_chip else buffer.num_bytes
