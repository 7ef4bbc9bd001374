"""Bytes that the instructions of a compiled program read from and write to a chip's memory."""

from groupvit_jax.plan.program import (
    Buffer,
    Computation,
    ExecutedInstruction,
    Instruction,
    Program,
    called_computations,
    is_asynchronous,
)

# Only the part that they return is read.
_SLICES = ("dynamic-slice", "gather", "slice")
# Types of the arrays in which library calls get their workspace.
_SCRATCH = ("s8", "u8")
# Custom calls of the TPU compiler that reserve or relabel memory and move nothing.
_NO_TRAFFIC = ('"AllocateBuffer"', '"ConcatBitcast"')


def traffic(program: Program, run: ExecutedInstruction) -> int:
    """Return the bytes that one execution of an instruction moves to and from HBM.

    An instruction reads its operands and writes its outputs, as they lie in memory with the padding
    of their tiles. Values inside a fusion and arrays in the chip's own memory are free. An operand
    that is only sliced counts with the slice, and an asynchronous operation counts once, where it
    starts.

    Args:
      program: that contains the instruction.
      run: of an instruction that is not fused into another.
    """
    instruction, computation = run.instruction, run.computation
    if any(name in instruction.attributes for name in _NO_TRAFFIC):
        return 0
    if is_asynchronous(instruction):
        return _asynchronous(run) if instruction.opcode.endswith("-start") else 0
    if instruction.opcode in _SLICES:
        source, result = computation[instruction.operands[0]].outputs[0], instruction.outputs[0]
        return _moved(result.stored_bytes, source, result)
    if instruction.opcode == "dynamic-update-slice":
        update = computation[instruction.operands[1]].outputs[0]
        return _moved(update.stored_bytes, update, instruction.outputs[0])
    outputs = [_size(buffer) for buffer in instruction.outputs]
    if "__cublas" in instruction.attributes or "__cudnn" in instruction.attributes:
        outputs = [size for size, buffer in zip(outputs, instruction.outputs, strict=True)
                   if buffer.dtype not in _SCRATCH]  # fmt: skip
    operands = [sum(map(_size, computation[name].outputs)) for name in instruction.operands]
    if instruction.opcode == "fusion":
        inner = program.computations[called_computations(instruction)[0]]
        operands = _fusion_reads(inner, operands)
        outputs = _fusion_writes(inner, outputs)
    return sum(operands) + sum(outputs)


def _asynchronous(run: ExecutedInstruction) -> int:
    """Count a copy or slice by what arrives, because its source may be a whole stack of layers.

    A start returns its operands, the outputs of the operation, and scalars of context; a copy
    returns the copy before its operand.
    """
    instruction = run.instruction
    arrays = [buffer for buffer in instruction.outputs if buffer.shape]
    sources = [b for name in instruction.operands for b in run.computation[name].outputs if b.shape]
    if instruction.opcode == "copy-start":
        return _moved(arrays[0].stored_bytes, sources[0], arrays[0])
    arrived = arrays[len(sources) :] or arrays
    if instruction.opcode.endswith("slice-start"):
        return _moved(arrived[0].stored_bytes, sources[0], arrived[0])
    return sum(map(_size, sources)) + sum(map(_size, arrived))


def _moved(num_bytes: int, source: Buffer, target: Buffer) -> int:
    """Count bytes that go from one array to another, on each side that is in HBM."""
    return num_bytes * ((not source.on_chip) + (not target.on_chip))


def _fusion_reads(inner: Computation, operands: list[int]) -> list[int]:
    """Return the bytes read of each operand; of those that the fusion only slices, the slices."""
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
        min(size, sum(map(_size, inner[root.operands[1]].outputs)))
        if root.opcode == "dynamic-update-slice"
        else size
        for root, size in zip(roots, outputs, strict=True)
    ]


def _size(buffer: Buffer) -> int:
    return 0 if buffer.on_chip else buffer.stored_bytes
