"""Plans as Markdown and JSON."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from groupvit_jax.plan.chips import GB, GIB
from groupvit_jax.plan.collectives import Collective
from groupvit_jax.plan.needs import Needs
from groupvit_jax.plan.plan import LargestBatch, Plan, StepWork
from groupvit_jax.report.markdown import markdown_table

Rows = Iterable[Sequence[str]]
# Smaller parts of a step share the table's last row.
_SMALLEST_PART = 0.005


def details(plan: Plan, largest: LargestBatch | None = None) -> str:
    """Return one plan as a page of Markdown.

    Args:
      plan: of one topology and batch size.
      largest: result of `find_largest_batch` for it.
    """
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh_shape.items())
    parts = [
        f"## {plan.topology}, batch {plan.batch_size:,}",
        f"{plan.num_chips:,} chips; mesh: {mesh}; {plan.num_steps:,} steps; compiled in "
        f"{plan.compile_seconds:.0f} s, {plan.compile_cpu_seconds:.0f} CPU s",
        f"**{_verdict(plan)}**",
        markdown_table(("a chip holds", "MiB"), _memory_rows(plan)),
        markdown_table(("FLOPs", "GFLOP an image"), _flops_rows(plan)),
    ]
    if plan.program:
        header = ("collective", "axis", "for", "type", "times a step", "MiB", "in a loop",
                  "overlaps", "between slices or hosts")  # fmt: skip
        parts += [
            _speed_line(plan, plan.program),
            markdown_table(
                ("part of the step", "ms", "share", "matrix ms", "memory ms", "launches"),
                _part_rows(plan.program),
            ),
            markdown_table(("a step takes at least", "ms"), _bound_rows(plan)),
            markdown_table(header, _collective_rows(plan.program.collectives)),
            f"{plan.program.launches:,} launches a step. Logits: "
            f"{_bytes(plan.program.logits)} a chip.",
        ]
    if plan.needs:
        parts += [
            markdown_table(("the run needs", ""), _need_rows(plan.needs)),
            markdown_table(
                ("from shards that are", "cores a host", "GB/s from storage"),
                [
                    (i.shards, f"{i.cores:,.1f}", f"{i.bytes_per_second / GB:.2f}")
                    for i in plan.needs.inputs
                ],
            ),
            *_input_warning(plan.needs),
        ]
    if largest:
        parts.append(_largest_line(largest))
    return "\n\n".join(parts)


def comparison(plans: Sequence[Plan]) -> str:
    """Return a Markdown table with a row for each plan."""
    header = ("topology", "chips", "batch", "fits", "GiB a chip", "of", "ms a step", "by",
              "roofline", "at least", "limited by", "images/s", "useful MFU", "days",
              "chip-hours", "cost", "hosts", "cores a host: raw", "prepared", "GB/s: raw",
              "prepared", "checkpoint GB", "every min", "CPU s to compile")  # fmt: skip
    return markdown_table(header, map(_comparison_row, plans))


def to_json(plan: Plan, largest: LargestBatch | None = None) -> dict[str, Any]:
    """Return the fields of a plan, and the figures derived from them, as JSON can hold them."""
    program = plan.program
    derived = {
        "fits": plan.memory.fits,
        "memory_total": plan.memory.total,
        "seconds": program.seconds if program else None,
        "roofline_seconds": program.prediction.roofline_seconds if program else None,
        "images_per_second": plan.images_per_second,
        "most_images_per_second": plan.most_images_per_second,
        "useful_mfu": plan.useful_mfu,
        "days": plan.days,
        "chip_hours": plan.chip_hours,
        "limited_by": program.bound.limit if program else None,
        "largest_batch": dataclasses.asdict(largest) if largest else None,
    }
    return dataclasses.asdict(plan) | derived


def _speed_line(plan: Plan, program: StepWork) -> str:
    prediction = program.prediction
    if prediction.is_by_cycles:
        title, method = "Predicted", "by the compiler's cycles"
    else:
        title, method = "At best", "by the roofline of each instruction: no cycles are known"
    return (
        f"**{title}: {1000 * program.seconds:.2f} ms a step, {plan.images_per_second:,.0f} "
        f"images/s, {plan.useful_mfu:.1%} useful MFU** ({method}); the run {plan.days:.2f} "
        f"days, {plan.chip_hours:,.0f} chip-hours. Instruction by instruction, the roofline is "
        f"{1000 * prediction.roofline_seconds:.2f} ms; the bound allows "
        f"{plan.most_images_per_second:,.0f} images/s, limited by {program.bound.limit}."
    )


def _part_rows(program: StepWork) -> Rows:
    """List the parts of the step, largest first; those of less than 0.5 % as one."""
    total = program.seconds
    small = [part for part in program.prediction.parts if part.seconds < _SMALLEST_PART * total]
    rows = [
        (part.name, part.seconds, part.matrix_seconds, part.memory_seconds, part.launches)
        for part in program.prediction.parts
        if part not in small
    ]
    if program.exchange_seconds:
        rows.append(("exchange between chips", program.exchange_seconds, 0.0, 0.0, 0))
    if small:
        sums = [sum(getattr(part, name) for part in small)
                for name in ("seconds", "matrix_seconds", "memory_seconds")]  # fmt: skip
        rows.append((f"{len(small)} smaller parts", *sums, sum(p.launches for p in small)))
    for name, seconds, matrix, memory, launches in rows:
        milliseconds = [f"{1000 * value:.2f}" for value in (matrix, memory)]
        yield (name, f"{1000 * seconds:.2f}", f"{seconds / total:.1%}", *milliseconds,
               f"{launches:,}")  # fmt: skip


def _need_rows(needs: Needs) -> Rows:
    yield ("hosts", f"{needs.hosts:,}")
    yield ("virtual cores that each has", f"{needs.host_cores:,.0f}" if needs.host_cores else "?")
    yield ("images/s a host", f"{needs.images_per_second:,.0f}")
    yield ("a checkpoint, GB", f"{needs.checkpoint_bytes / GB:.2f}")
    yield ("a checkpoint every, minutes", f"{needs.checkpoint_seconds / 60:.1f}")
    if needs.cost is not None:
        yield ("cost", f"{needs.cost:,.0f}")


def _input_warning(needs: Needs) -> list[str]:
    slow = "; ".join(needs.too_slow)
    return [f"**The input can't keep up from these shards: {slow}.**"] if slow else []


def _verdict(plan: Plan) -> str:
    memory = plan.memory
    used = f"{memory.total / GIB:.2f} of {memory.available / GIB:.2f} GiB"
    spare = f"{abs(memory.available - memory.total) / GIB:.2f} GiB"
    return f"Fits: {used}, {spare} spare" if memory.fits else f"Does not fit: {used}, {spare} over"


def _memory_rows(plan: Plan) -> Rows:
    kinds = dataclasses.asdict(plan.memory)
    available = kinds.pop("available")
    kinds |= {"total": plan.memory.total, "available": available}
    return [(name, f"{size / 2**20:,.1f}") for name, size in kinds.items()]


def _flops_rows(plan: Plan) -> Rows:
    counts = {"useful: no padding, nothing twice": plan.useful_flops,
              "by hand: whole rows of text": plan.hand_flops}  # fmt: skip
    if plan.program:
        counts["of the compiled program"] = plan.program.flops_per_image
    return [(name, f"{count / 1e9:,.4g}") for name, count in counts.items()]


def _collective_rows(collectives: Sequence[Collective]) -> Rows:
    def kind(c: Collective) -> tuple[str, str, str, str, bool, bool, bool]:
        return c.kind, c.axes, c.purpose, c.dtypes, c.in_loop, c.overlaps, c.crosses_slices

    for key, same in itertools.groupby(sorted(collectives, key=kind), kind):
        group = list(same)
        times = sum(c.count for c in group)
        mib = sum(c.count * c.num_bytes for c in group) / 2**20
        yes = ["yes" if value else "no" for value in key[4:]]
        yield (*key[:4], f"{times:,}", f"{mib:,.3f}", *yes)


def _bound_rows(plan: Plan) -> Rows:
    bound = plan.program.bound if plan.program else None
    items = dataclasses.asdict(bound).items() if bound else ()
    return [(name, f"{1000 * seconds:.3f}") for name, seconds in items]


def _largest_line(largest: LargestBatch) -> str:
    compiled = ", ".join(f"{size:,}" for size in largest.compiled)
    if not largest.memory:
        return f"No batch was found that fits (compiled: {compiled})."
    memory = largest.memory
    return (
        f"Largest batch: {largest.batch_size:,}, compiled and found to take "
        f"{memory.total / GIB:.2f} of {memory.available / GIB:.2f} GiB (compiled: {compiled}; "
        f"between them a line was drawn)."
    )


def _comparison_row(plan: Plan) -> Sequence[str]:
    memory, program, needs = plan.memory, plan.program, plan.needs
    row = [
        plan.topology, f"{plan.num_chips:,}", f"{plan.batch_size:,}",
        "yes" if memory.fits else "no", f"{memory.total / GIB:.2f}",
        f"{memory.available / GIB:.2f}",
    ]  # fmt: skip
    if program is None or needs is None:
        return [*row, *[""] * 17, f"{plan.compile_cpu_seconds:.0f}"]
    raw, prepared = needs.inputs[:2]
    return [
        *row, f"{1000 * program.seconds:.2f}",
        "cycles" if program.prediction.is_by_cycles else "roofline",
        f"{1000 * program.prediction.roofline_seconds:.2f}",
        f"{1000 * program.bound.seconds:.2f}", program.bound.limit,
        f"{plan.images_per_second:,.0f}", f"{plan.useful_mfu:.1%}", f"{plan.days:.2f}",
        f"{plan.chip_hours:,.0f}", "" if needs.cost is None else f"{needs.cost:,.0f}",
        f"{needs.hosts:,}", f"{raw.cores:,.0f}", f"{prepared.cores:,.0f}",
        f"{raw.bytes_per_second / GB:.2f}", f"{prepared.bytes_per_second / GB:.2f}",
        f"{needs.checkpoint_bytes / GB:.2f}", f"{needs.checkpoint_seconds / 60:.0f}",
        f"{plan.compile_cpu_seconds:.0f}",
    ]  # fmt: skip


def _bytes(count: int) -> str:
    for unit, size in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
