"""Prediction of a step's time from the compiler's cycles, by part of the model."""

import collections
import dataclasses
from collections.abc import Sequence

from groupvit_jax.plan.hardware import Chip
from groupvit_jax.plan.instructions import InstructionCost


@dataclasses.dataclass(frozen=True)
class Part:
    """Seconds of a step that one part of the model takes on a chip.

    Attributes:
      name: of the part.
      seconds: predicted.
      matrix_seconds: of its matrix products at the chip's peak.
      memory_seconds: of its traffic at the bandwidth of HBM, asynchronous copies included.
      roofline_seconds: sum over its instructions of the longer of the two.
      instructions: number of instructions a step executes.
    """

    name: str
    seconds: float
    matrix_seconds: float
    memory_seconds: float
    roofline_seconds: float
    instructions: int


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Predicted seconds of a step on one chip, without the exchange between chips.

    Attributes:
      seconds: the sum over parts, or the time that the traffic takes where that is longer.
      estimated: share of the seconds that the compiler's own estimates give. The rest are
        instructions without an estimate, which count with their roofline.
      parts: largest first.
    """

    seconds: float
    estimated: float
    parts: tuple[Part, ...]

    @property
    def matrix_seconds(self) -> float:
        """Of all matrix products at the chip's peak."""
        return sum(part.matrix_seconds for part in self.parts)

    @property
    def memory_seconds(self) -> float:
        """Of all traffic at the bandwidth of HBM."""
        return sum(part.memory_seconds for part in self.parts)

    @property
    def roofline_seconds(self) -> float:
        """Instruction by instruction: none overlaps another."""
        return sum(part.roofline_seconds for part in self.parts)


def predict(costs: Sequence[InstructionCost], chip: Chip) -> Prediction:
    """Returns the prediction for one device of a chip.

    A TPU executes one instruction after another, so their estimates add up. Asynchronous copies run
    beside them and cost nothing until all traffic together takes longer than the instructions.

    Args:
      costs: of the instructions of a step.
      chip: that executes them.
    """
    by_part: dict[str, list[InstructionCost]] = collections.defaultdict(list)
    for cost in costs:
        by_part[cost.part].append(cost)
    parts = [_part(name, found, chip) for name, found in by_part.items()]
    parts.sort(key=lambda part: part.seconds, reverse=True)
    total = sum(part.seconds for part in parts)
    estimated = sum(_seconds(cost, chip) for cost in costs if cost.cycles is not None)
    memory = sum(part.memory_seconds for part in parts)
    return Prediction(
        seconds=max(total, memory),
        estimated=estimated / total if total else 0.0,
        parts=tuple(parts),
    )


def _part(name: str, costs: Sequence[InstructionCost], chip: Chip) -> Part:
    return Part(
        name=name,
        seconds=sum(_seconds(cost, chip) for cost in costs),
        matrix_seconds=sum(cost.count * _matrix_seconds(cost, chip) for cost in costs),
        memory_seconds=sum(cost.count * _memory_seconds(cost, chip) for cost in costs),
        roofline_seconds=sum(cost.count * _roofline_seconds(cost, chip) for cost in costs),
        instructions=sum(cost.count for cost in costs),
    )


def _seconds(cost: InstructionCost, chip: Chip) -> float:
    """Of all executions in a step."""
    if cost.is_asynchronous:
        return 0.0
    if cost.cycles is None or not chip.clock_rate:
        return cost.count * _roofline_seconds(cost, chip)
    seconds = cost.cycles / chip.clock_rate
    if cost.opcode == "custom-call":  # the schedule of a kernel leaves out waiting for its data
        seconds = max(seconds, _memory_seconds(cost, chip))
    return cost.count * seconds


def _matrix_seconds(cost: InstructionCost, chip: Chip) -> float:
    return cost.flops * chip.devices / chip.peak_flops


def _memory_seconds(cost: InstructionCost, chip: Chip) -> float:
    return cost.num_bytes * chip.devices / chip.memory_bandwidth


def _roofline_seconds(cost: InstructionCost, chip: Chip) -> float:
    return max(_matrix_seconds(cost, chip), _memory_seconds(cost, chip))
