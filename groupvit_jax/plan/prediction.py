"""Prediction of a step's time from the compiler's cycles, by part of the model."""

import collections
import dataclasses
import math
from collections.abc import Sequence

from groupvit_jax.plan.chips import Chip
from groupvit_jax.plan.collectives import Collective
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
      launches: number of operations that a step starts, on a GPU about a kernel each.
    """

    name: str
    seconds: float
    matrix_seconds: float
    memory_seconds: float
    roofline_seconds: float
    launches: int


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
    def is_by_cycles(self) -> bool:
        """Whether the compiler's estimates give most of the time; else it is a lower bound."""
        return self.estimated > 0.5

    @property
    def matrix_seconds(self) -> float:
        """Of all matrix products at the chip's peak."""
        return math.fsum(part.matrix_seconds for part in self.parts)

    @property
    def memory_seconds(self) -> float:
        """Of all traffic at the bandwidth of HBM."""
        return math.fsum(part.memory_seconds for part in self.parts)

    @property
    def roofline_seconds(self) -> float:
        """Instruction by instruction: none overlaps another."""
        return math.fsum(part.roofline_seconds for part in self.parts)


def predict(costs: Sequence[InstructionCost], chip: Chip) -> Prediction:
    """Return the prediction for one device of a chip.

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
    total = math.fsum(part.seconds for part in parts)
    estimated = math.fsum(_seconds(cost, chip) for cost in costs if cost.cycles is not None)
    memory = math.fsum(part.memory_seconds for part in parts)
    return Prediction(
        seconds=max(total, memory),
        estimated=estimated / total if total else 0.0,
        parts=tuple(parts),
    )


def exposed_seconds(collectives: Sequence[Collective], chip: Chip) -> float:
    """Return the seconds of a step in which a chip only exchanges data.

    Args:
      collectives: of the program; those that run beside other work take no time of their own.
      chip: at whose published bandwidths they run. The latency of a small one is not counted.
    """
    return math.fsum(
        chip.devices * _exchange_seconds(collective, chip)
        for collective in collectives
        if not collective.overlaps
    )


def _exchange_seconds(collective: Collective, chip: Chip) -> float:
    if collective.crosses_slices:
        return collective.network_bytes / chip.network_bandwidth
    return collective.sent_bytes / chip.link_bandwidth


def _part(name: str, costs: Sequence[InstructionCost], chip: Chip) -> Part:
    return Part(
        name=name,
        seconds=math.fsum(_seconds(cost, chip) for cost in costs),
        matrix_seconds=math.fsum(cost.count * _matrix_seconds(cost, chip) for cost in costs),
        memory_seconds=math.fsum(cost.count * _memory_seconds(cost, chip) for cost in costs),
        roofline_seconds=math.fsum(cost.count * _roofline_seconds(cost, chip) for cost in costs),
        launches=sum(cost.launches for cost in costs),
    )


def _seconds(cost: InstructionCost, chip: Chip) -> float:
    """Of all executions in a step."""
    if cost.takes_no_time:
        return 0.0
    if cost.cycles is None or not chip.clock_rate:
        return cost.count * _roofline_seconds(cost, chip)
    seconds = cost.cycles / chip.clock_rate
    if cost.opcode == "custom-call":
        # The schedule of a kernel leaves out waiting for data and for the matrix units.
        seconds = max(seconds, _roofline_seconds(cost, chip))
    return cost.count * seconds


def _matrix_seconds(cost: InstructionCost, chip: Chip) -> float:
    return cost.flops * chip.devices / chip.peak_flops


def _memory_seconds(cost: InstructionCost, chip: Chip) -> float:
    return cost.num_bytes * chip.devices / chip.memory_bandwidth


def _roofline_seconds(cost: InstructionCost, chip: Chip) -> float:
    return max(_matrix_seconds(cost, chip), _memory_seconds(cost, chip))
