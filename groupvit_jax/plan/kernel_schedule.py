"""Cycles of Pallas kernels on TPUs, read from the schedule that libtpu writes for them.

XLA's cost model gives no estimate for a custom call, but libtpu can dump the final schedule of a
kernel: one line for each bundle of instructions, which takes a cycle. With the trip counts of its
loops that is the time of the kernel, provided that its data, copied meanwhile, arrives in time.

libtpu takes the flags of a dump only when it loads, and would dump every fusion of a whole training
step. So each kernel is compiled once more, alone, in a process of its own: this module's `main`.
"""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from groupvit_jax.plan.program import Buffer, Computation, Instruction, Program, executions

_TARGET = 'custom_call_target="tpu_custom_call"'
_BUNDLE = re.compile(r"^\s*(?:0x)?[0-9a-f]+\s+([A-Z]{2})?\s*:[\s>]*\{", re.M)
_EXIT_TEST = re.compile(r"%(p\w+) = scmp\.ge\.s32\.totalorder \S+, (\d+) /\* loop exit test")
_GRID = re.compile(r"^iteration_bounds: \(([\d, ]+)\)", re.M)
# Jumps to the end of a region where the predicate, or its opposite, holds.
_BRANCH = re.compile(r"sbr\.rel \((!?)%(\w+)\) target = \$region(\d+)")
_DEFINITION = re.compile(r"%(p\w+) = (\w[\w.]*) ([^/;}]*)")
_PREDICATE = re.compile(r"%(p\w+)")
_DUMP_FLAGS = (
    "--xla_jf_dump_llo_text=true",
    "--xla_jf_dump_llo_pass_label_regex=final_bundles",
)
_DTYPES = {"pred": "bool", "bf16": "bfloat16", "f16": "float16", "f32": "float32", "s8": "int8",
           "u8": "uint8", "s16": "int16", "u16": "uint16", "s32": "int32",
           "u32": "uint32"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A custom call of a compiled program.

    Attributes:
      operands: XLA's type and the shape of each array that it takes.
      results: of each array that it returns.
      config: its backend configuration: the kernel itself and its options, in JSON.
    """

    operands: tuple[tuple[str, tuple[int, ...]], ...]
    results: tuple[tuple[str, tuple[int, ...]], ...]
    config: str


def kernel_cycles(program: Program, topology: str) -> dict[str, int]:
    """Return the cycles of one execution of each Pallas kernel, by the instruction's name.

    Args:
      program: compiled for TPUs.
      topology: one chip of the same kind, e.g. "v5e:1x1".

    Raises:
      RuntimeError: libtpu wrote no schedule for a kernel.
    """
    kernels = {
        run.instruction.name: _kernel(run.instruction, run.computation)
        for run in executions(program)
        if _TARGET in run.instruction.attributes
    }
    # A block's kernel is the same in every layer of a stage.
    distinct = list(dict.fromkeys(kernels.values()))
    if not distinct:
        return {}
    cycles = dict(zip(distinct, _compile_apart(distinct, topology), strict=True))
    return {name: cycles[kernel] for name, kernel in kernels.items()}


def schedule_cycles(text: str) -> int:
    """Return the cycles of a kernel by its final schedule.

    Each bundle counts as often as the loops around it run. The outermost loop is the kernel's grid;
    it runs twice more than the grid has programs, to fill and drain its pipeline, but those rounds
    only start and await copies and are not counted. A region that runs in one program of the grid
    only, such as setting sums to zero in the first, counts once.

    Args:
      text: of libtpu's dump `final_bundles`.
    """
    matches = list(_BUNDLE.finditer(text))
    ends = [match.start() for match in matches[1:]] + [len(text)]
    lines = [text[match.start() : end] for match, end in zip(matches, ends, strict=True)]
    found = _GRID.search(text)
    grid = [int(n) for n in found[1].split(",")] if found else []
    exits = dict(_EXIT_TEST.findall(text))
    counts = [1] * len(lines)
    loops: list[int] = []  # first bundles of the loops around the current one
    for i, (match, line) in enumerate(zip(matches, lines, strict=True)):
        if match[1] == "LB":
            loops.append(i)
        elif loops and (branch := _BRANCH.search(line)) and branch[2] in exits:
            first = loops.pop()
            trips = math.prod(grid) if grid and not loops else int(exits[branch[2]])
            counts[first : i + 1] = [count * trips for count in counts[first : i + 1]]
    for first, last in _regions_of_one_program(lines, grid):
        counts[first:last] = [count // math.prod(grid) for count in counts[first:last]]
    return sum(counts)


def _regions_of_one_program(lines: Sequence[str], grid: Sequence[int]) -> list[tuple[int, int]]:
    """Find the regions whose branch compares the program's index in each dimension with a value.

    A branch jumps over its region. Where it doesn't compare every dimension of the grid, the region
    runs in several programs and is not among those returned.
    """
    defined = {name: (op, tuple(_PREDICATE.findall(arguments)))
               for line in lines for name, op, arguments in _DEFINITION.findall(line)}  # fmt: skip
    needed = max(sum(n > 1 for n in grid), 1)
    regions = []
    for i, line in enumerate(lines):
        if (branch := _BRANCH.search(line)) is None:
            continue
        target = re.compile(rf"region {branch[3]}\b")
        last = next((j for j in range(i + 1, len(lines)) if target.search(lines[j])), None)
        if last is not None and _equalities(branch[2], bool(branch[1]), defined) >= needed:
            regions.append((i + 1, last))
    return regions


def _equalities(
    name: str, value: bool, defined: Mapping[str, tuple[str, tuple[str, ...]]], depth: int = 0
) -> int:
    """Count the comparisons for equality that must hold for a predicate to have a value."""
    op, arguments = defined.get(name, ("", ()))
    if op.startswith(("scmp.eq", "scmp.ne")):
        return int(op.startswith("scmp.eq") == value)
    passes_on = {("pneg", False): True, ("pneg", True): False, ("pand", True): True,
                 ("pnand", False): True, ("por", False): False}  # fmt: skip
    if (op, value) not in passes_on or depth > 8:
        return 0
    return sum(_equalities(a, passes_on[op, value], defined, depth + 1) for a in arguments)


def _kernel(instruction: Instruction, computation: Computation) -> Kernel:
    text = instruction.attributes
    start = text.index("backend_config=") + len("backend_config=")
    config, _ = json.JSONDecoder().raw_decode(text, start)
    operands = [b for name in instruction.operands for b in computation[name].outputs]

    def types(buffers: Sequence[Buffer]) -> tuple[tuple[str, tuple[int, ...]], ...]:
        return tuple((buffer.dtype, buffer.shape) for buffer in buffers)

    return Kernel(types(operands), types(instruction.outputs), json.dumps(config, sort_keys=True))


def _compile_apart(kernels: Sequence[Kernel], topology: str) -> list[int]:
    """Compile kernels in a process whose libtpu dumps schedules; return the cycles of each."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [os.environ.get("LIBTPU_INIT_ARGS", ""), f"--xla_jf_dump_to={folder}", *_DUMP_FLAGS]
        settings = {
            "LIBTPU_INIT_ARGS": " ".join(flags).strip(),
            "JAX_PLATFORMS": "cpu",
            "JAX_ENABLE_COMPILATION_CACHE": "false",  # a cached kernel would leave no schedule
        }
        result = subprocess.run(
            [sys.executable, "-m", "groupvit_jax.plan.kernel_schedule", topology, folder],
            input=json.dumps([dataclasses.asdict(kernel) for kernel in kernels]),
            env=os.environ | settings,
            capture_output=True,
            text=True,
        )
    if result.returncode:
        raise RuntimeError(f"kernels' schedules: {result.stderr.strip()[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def main(topology: str, folder: str) -> None:
    """Compile the kernels described on standard input; print their cycles as a JSON list.

    Args:
      topology: one chip.
      folder: that libtpu dumps to.
    """
    from groupvit_jax.plan import hardware  # loads JAX, which the parent has already

    device = hardware.find_topology(topology).devices[0]
    cycles = []
    for description in json.load(sys.stdin):
        before = set(Path(folder).iterdir())
        _compile_kernel(description, device)
        # The top-level program (TLP), which calls the kernel, is analysed too.
        new = sorted(p for p in set(Path(folder).iterdir()) - before if "-TLP-" not in p.name)
        texts = [path.read_text() for path in new if path.name.endswith("final_bundles.txt")]
        # The analysis of a schedule names its instruction and precedes the schedule.
        wanted = [i for i, text in enumerate(texts)
                  if text.startswith("Schedule analysis") and _TARGET in text]  # fmt: skip
        if len(wanted) != 1:
            raise RuntimeError(f"libtpu: {len(wanted)} schedules of a kernel found, expected 1")
        cycles.append(schedule_cycles(texts[wanted[0] + 1]))
    print(json.dumps(cycles))


def _compile_kernel(description: dict[str, Any], device: Any) -> None:
    """Compile a program of one custom call."""
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    sharding = NamedSharding(Mesh(np.array([device]), ("chip",)), PartitionSpec())

    def arrays(types: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
        return [jax.ShapeDtypeStruct(tuple(shape), _DTYPES[dtype], sharding=sharding)
                for dtype, shape in types]  # fmt: skip

    call = jax.ffi.ffi_call(
        "tpu_custom_call",
        arrays(description["results"]),
        custom_call_api_version=1,
        legacy_backend_config=description["config"],
        has_side_effect=True,
    )
    jax.jit(call).lower(*arrays(description["operands"])).compile()


if __name__ == "__main__":
    main(*sys.argv[1:])
