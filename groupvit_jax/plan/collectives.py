"""Collectives of a compiled program: which data travel between chips, along which mesh axes."""

import collections
import dataclasses
import itertools
import re
from collections.abc import Sequence

import numpy as np

from groupvit_jax.plan.program import (
    Computation,
    ExecutedInstruction,
    Instruction,
    Program,
    executions,
)
from groupvit_jax.typing import Int

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
         "collective-broadcast", "ragged-all-to-all")  # fmt: skip
# Bytes that each chip sends over a ring of n chips, per byte of the whole array.
# A reduction goes round twice: partial sums to their owner, then the totals to all.
_RING = {"all-reduce": 2.0, "collective-permute": 1.0, "collective-broadcast": 1.0}

_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})?\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
    r"\s*\{([^}]*)\}"
)
# A TPU's host carries what goes from slice to slice.
_NETWORK = re.compile(r'"xla_megascale_runtime",_xla_host_transfer_rendezvous="([a-z-]+)')
_CHANNEL = re.compile(r"channel_id=(\d+)")
_MAX_VIEWS = 8
Groups = Int[np.ndarray, "groups chips"]


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of the program.

    Attributes:
      kind: XLA's name of it, one of `KINDS`.
      axes: names of the mesh axes it runs over, joined by "+"; preceded by a number of chips if it
        runs over a part of them only.
      group_size: number of chips that exchange with each other.
      dtypes: XLA's types of its arrays, joined by "+".
      num_bytes: of the whole array, on each chip: operand of a reduction, result of a gather.
      count: how often it runs in a step.
      in_loop: whether it is in a loop of the program.
      overlaps: whether the chip goes on with other work meanwhile.
      crosses_slices: whether it needs the network between slices, or hosts of GPUs.
      purpose: by the JAX code it stems from.
      lanes: chips of a slice or host among which the way over the network is divided: a ring
        leaves a host once, and there are as many rings as network adapters.
    """

    kind: str
    axes: str
    group_size: int
    dtypes: str
    num_bytes: int
    count: int
    in_loop: bool
    overlaps: bool
    crosses_slices: bool
    purpose: str
    lanes: int = 1

    @property
    def sent_bytes(self) -> float:
        """Bytes that each chip sends in a step, on a ring."""
        n = self.group_size
        return self.count * self.num_bytes * _RING.get(self.kind, 1.0) * (n - 1) / n

    @property
    def network_bytes(self) -> float:
        """Bytes that each chip sends between slices or hosts in a step, if it crosses them."""
        return self.sent_bytes / self.lanes


def find_collectives(
    program: Program, mesh_shape: dict[str, int], slice_of: Sequence[int]
) -> list[Collective]:
    """Return the program's collectives in its order, without those among one chip.

    Args:
      program: the compiled program.
      mesh_shape: size of each axis by name, the outermost first.
      slice_of: the slice of each device of the mesh, in its order.
    """
    namer = _AxisNamer(mesh_shape)
    found: list[Collective] = []
    fused: set[tuple[str, str]] = set()
    for run in executions(program):
        kind = run.instruction.opcode.removesuffix("-start")
        if kind == "send" and (between := _NETWORK.search(run.instruction.attributes)):
            found.append(_between_slices(between[1], run, mesh_shape, slice_of))
        if kind not in KINDS:
            continue
        # An asynchronous collective is in several fusions: where it starts, goes on and ends.
        channel = _CHANNEL.search(run.instruction.attributes)
        if run.is_fused and channel:
            if (kind, channel[1]) in fused:
                continue
            fused.add((kind, channel[1]))
        groups = replica_groups(run.instruction.attributes, len(slice_of))
        if groups.shape[1] > 1:
            slices = np.asarray(slice_of)[groups]
            crosses = bool((slices != slices[:, :1]).any())
            found.append(
                Collective(
                    kind=kind,
                    axes=namer.name(groups),
                    group_size=groups.shape[1],
                    dtypes=_dtypes(run),
                    num_bytes=_num_bytes(kind, run, groups.shape[1]),
                    count=run.count,
                    in_loop=run.loops > 0,
                    overlaps=run.is_fused or run.instruction.opcode.endswith("-start"),
                    crosses_slices=crosses,
                    purpose=_main_purpose(run),
                    lanes=_most_common(slices[0]) if crosses else 1,
                )
            )
    return found


def replica_groups(attributes: str, num_devices: int) -> Groups:
    """Return the devices of each group, in any of the three forms that XLA prints.

    Raises:
      ValueError: a form that XLA did not have when this was written.
    """
    if match := _IOTA.search(attributes):
        shape, dims, order = ([int(i) for i in (m or "").split(",") if i] for m in match.groups())
        return _iota(dims, order).reshape(shape)
    if match := _MESH.search(attributes):
        return _mesh_groups(match, num_devices)
    if match := _LISTED.search(attributes):
        if not match[1]:
            return np.arange(num_devices)[None]
        rows = [row.split(",") for row in match[1].strip("{}").split("},{")]
        if "source_target_pairs" in match[0]:
            # A chip that permutes with itself sends nothing.
            rows = [row for row in rows if row[0] != row[1]] or [rows[0][:1]]
        return np.array(rows, int)
    raise ValueError(f"compiled program: no replica groups in {attributes[:120]!r}")


def purpose(op_name: str) -> str:
    """Return the purpose of a collective, by the path of the JAX code that it stems from."""
    backward = "transpose(" in op_name
    if "projector" in op_name and "/norm/" in op_name:
        return "BatchNorm"
    if re.search(r"random_erasing|threefry|random_bits", op_name):
        return "noise"
    if re.search("TwoTower|encoder|projector|on_each_device", op_name):
        return "gradients" if backward else "model"
    if "jvp(" in op_name:
        return "loss"
    return "optimizer and norms" if op_name else "unnamed"


def _most_common(slices: Int[np.ndarray, " chips"]) -> int:
    """Return how many of a group's chips are in one slice, at most."""
    return max(collections.Counter(slices.tolist()).values())


def _main_purpose(run: ExecutedInstruction) -> str:
    """Return the purpose of most bytes: XLA combines collectives and keeps the path of one."""
    own = run.instruction.op_name
    if len(run.instruction.operands) == 1 and own:
        return purpose(own)
    weights: collections.Counter[str] = collections.Counter()
    for name in run.instruction.operands:
        operand = run.computation[name]
        size = sum(buffer.num_bytes for buffer in operand.outputs)
        weights[purpose(_nearest_name(operand, run.computation))] += size
    return max(weights, key=weights.__getitem__, default="unnamed")


def _nearest_name(instruction: Instruction, computation: Computation) -> str:
    """Return the path of the nearest operation that has one, since views of arrays have none."""
    for _ in range(_MAX_VIEWS):
        if "/" in instruction.op_name or not instruction.operands:
            break
        instruction = computation[instruction.operands[0]]
    return instruction.op_name


def _iota(dims: Sequence[int], order: Sequence[int]) -> Int[np.ndarray, "..."]:
    ids = np.arange(int(np.prod(dims))).reshape(dims)
    return ids.transpose(order) if order else ids


def _mesh_groups(match: re.Match[str], num_devices: int) -> Groups:
    """Group along axes of a mesh or parts of axes: `'x':(m)k` is the k after the first m."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", match[1])}
    dims, order = ([int(i) for i in (m or "").split(",") if i] for m in (match[2], match[3]))
    ids = _iota(dims or [num_devices], order).ravel()
    shape: list[int] = []
    chosen: list[int] = []
    used = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", match[4])
    for name, size in sizes.items():
        cuts = {1, size}
        parts = [(int(m), int(k)) for n, m, k in used if n == name and m]
        for m, k in parts:
            cuts |= {m, m * k}
        whole = (name, "", "") in used
        edges = sorted(cuts)
        for low, high in itertools.pairwise(edges):
            inside = whole or any(m <= low and high <= m * k for m, k in parts)
            chosen += [len(shape)] if inside else []
            shape.append(high // low)
    rest = [i for i in range(len(shape)) if i not in chosen]
    group_size = int(np.prod([shape[i] for i in chosen]))
    return ids.reshape(shape).transpose(rest + chosen).reshape(-1, group_size)


def _between_slices(
    kind: str, run: ExecutedInstruction, mesh_shape: dict[str, int], slice_of: Sequence[int]
) -> Collective:
    """Return the part of a collective over several slices that a chip sends through its host."""
    slices = np.asarray(slice_of).reshape(list(mesh_shape.values()))
    axes = [axis for i, axis in enumerate(mesh_shape) if (np.diff(slices, axis=i) != 0).any()]
    num_slices = len(set(slice_of))
    return Collective(
        kind=kind,
        axes="+".join(axes),
        group_size=num_slices,
        dtypes=_dtypes(run),
        num_bytes=_num_bytes(kind, run, num_slices),
        count=run.count,
        in_loop=run.loops > 0,
        overlaps=True,
        crosses_slices=True,
        purpose=_main_purpose(run),
    )


def _dtypes(run: ExecutedInstruction) -> str:
    names = run.instruction.operands
    return "+".join(dict.fromkeys(b.dtype for name in names for b in run.computation[name].outputs))


def _num_bytes(kind: str, run: ExecutedInstruction, group_size: int) -> int:
    operands = sum(
        buffer.num_bytes
        for name in run.instruction.operands
        for buffer in run.computation[name].outputs
    )
    # A gather's operand is one chip's part of the array.
    return operands * (group_size if kind == "all-gather" else 1)


class _AxisNamer:
    """Finds the mesh axes that groups of devices run along."""

    def __init__(self, mesh_shape: dict[str, int]):
        axes = [axis for axis, size in mesh_shape.items() if size > 1]
        ids = np.arange(int(np.prod(list(mesh_shape.values())))).reshape(
            [mesh_shape[axis] for axis in axes]
        )
        self._label: dict[str, np.ndarray] = {}  # which group a device is in, by axes
        subsets = (s for n in range(1, len(axes) + 1) for s in itertools.combinations(axes, n))
        for subset in subsets:
            kept = [i for i, axis in enumerate(axes) if axis not in subset]
            moved = [i for i, axis in enumerate(axes) if axis in subset]
            rows = ids.transpose(kept + moved).reshape(-1, np.prod([ids.shape[i] for i in moved]))
            label = np.empty(ids.size, int)
            label[rows] = np.arange(len(rows))[:, None]
            self._label["+".join(subset)] = label

    def name(self, groups: Groups) -> str:
        for axes, label in self._label.items():  # the fewest axes first
            labels = label[groups]
            if (labels == labels[:, :1]).all():
                whole = np.bincount(label)[0] == groups.shape[1]
                return axes if whole else f"{groups.shape[1]} of {axes}"
        return f"{groups.shape[1]} chips"
