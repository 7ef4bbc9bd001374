"""Costs of each instruction of a compiled program: cycles, FLOPs, bytes, and what it belongs to."""

import dataclasses
import re
from collections.abc import Mapping

from groupvit_jax.plan import costs
from groupvit_jax.plan.collectives import KINDS
from groupvit_jax.plan.parts import UNNAMED, part_of
from groupvit_jax.plan.program import (
    FREE,
    Computation,
    Instruction,
    Program,
    called_computations,
    executions,
    is_asynchronous,
)
from groupvit_jax.plan.traffic import traffic

# The TPU compiler's cost model leaves its estimate in the text.
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
# How far to look for a name along operands or users.
_MAX_STEPS = 8


@dataclasses.dataclass(frozen=True)
class InstructionCost:
    """Cost of one instruction on one device.

    Attributes:
      name: of the instruction.
      opcode: XLA's name of the operation.
      part: of the training step that it belongs to.
      count: how often it runs in a step.
      cycles: of one execution, by the compiler's estimate; None if it gives none.
      flops: of the matrix products in one execution.
      num_bytes: that one execution moves to and from memory.
      takes_no_time: whether the chip goes on beside it: it is an asynchronous operation, or a
        collective, of which `prediction.exposed_seconds` counts the time on the links.
    """

    name: str
    opcode: str
    part: str
    count: int
    cycles: int | None
    flops: int
    num_bytes: int
    takes_no_time: bool

    @property
    def launches(self) -> int:
        """Operations that it starts in a step, on a GPU kernels or copies; an end starts none."""
        return 0 if self.opcode.endswith(("-update", "-done")) else self.count


def instruction_costs(
    program: Program, kernel_cycles: Mapping[str, int] | None = None
) -> list[InstructionCost]:
    """Return the cost of every instruction that runs, without those inside fusions.

    Args:
      program: the compiled program.
      kernel_cycles: cycles of custom calls by name, for which the compiler gives no estimate.
    """
    parts, by_kernel = _Parts(program), kernel_cycles or {}
    found: list[InstructionCost] = []
    for run in executions(program):
        flops = costs.flops(run)
        if not run.is_fused:
            if run.instruction.opcode in FREE:
                continue
            estimate = _CYCLES.search(run.instruction.attributes)
            cycles = int(estimate[1]) if estimate else by_kernel.get(run.instruction.name)
            found.append(
                InstructionCost(
                    name=run.instruction.name,
                    opcode=run.instruction.opcode,
                    part=parts.of(run.computation, run.instruction),
                    count=run.count,
                    cycles=cycles,
                    flops=flops,
                    num_bytes=traffic(program, run),
                    takes_no_time=is_asynchronous(run.instruction)
                    or run.instruction.opcode in KINDS,
                )
            )
        elif flops:  # inside the fusion that was found last
            found[-1] = dataclasses.replace(found[-1], flops=found[-1].flops + flops)
    return found


class _Parts:
    """Finds the part of the model of instructions, those without a name of their own included.

    The compiler adds copies between layouts, and prefetches, without a name. They belong to the
    part that makes the array, or else to the part that uses it.
    """

    def __init__(self, program: Program):
        self._program = program
        self._users: dict[int, dict[str, list[Instruction]]] = {}

    def of(self, computation: Computation, instruction: Instruction) -> str:
        own = self._own(instruction)
        if own != UNNAMED:
            return own
        return self._along(computation, instruction, upwards=True) or (
            self._along(computation, instruction, upwards=False) or UNNAMED
        )

    def _own(self, instruction: Instruction) -> str:
        # Parameters are named after the state's leaves, not after a function.
        names = [instruction.op_name]
        if instruction.opcode == "fusion":
            inner = self._program.computations[called_computations(instruction)[0]]
            names += [inside.op_name for inside in reversed(inner.values())]
        return part_of(next((name for name in names if "/" in name), ""))

    def _along(self, computation: Computation, start: Instruction, *, upwards: bool) -> str | None:
        """Follow operands, or users, up to the next named instruction."""
        current = start
        for _ in range(_MAX_STEPS):
            if upwards:
                nearest = [computation[name] for name in current.operands[:1]]
            else:
                nearest = self._users_in(computation).get(current.name, [])[:1]
            if not nearest:
                return None
            current = nearest[0]
            if (part := self._own(current)) != UNNAMED:
                return part
        return None

    def _users_in(self, computation: Computation) -> dict[str, list[Instruction]]:
        if id(computation) not in self._users:
            users: dict[str, list[Instruction]] = {}
            for instruction in computation.values():
                for name in instruction.operands:
                    users.setdefault(name, []).append(instruction)
            self._users[id(computation)] = users
        return self._users[id(computation)]
