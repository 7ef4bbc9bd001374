"""Plans as Markdown and JSON."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from groupvit_jax.eval.results import markdown_table
from groupvit_jax.plan.collectives import Collective
from groupvit_jax.plan.hardware import GIB
from groupvit_jax.plan.plan import LargestBatch, Plan

Rows = Iterable[Sequence[str]]


def details(plan: Plan, largest: LargestBatch | None = None) -> str:
    """Returns all that is known of one plan, in Markdown.

    Args:
      plan: of one topology and batch size.
      largest: what `find_largest_batch` found for it.
    """
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh_shape.items())
    parts = [
        f"## {plan.topology}, batch {plan.batch_size:,}",
        f"{plan.num_chips:,} chips; mesh: {mesh}; {plan.num_steps:,} steps; compiled in "
        f"{plan.compile_seconds:.0f} s",
        f"**{_verdict(plan)}**",
        markdown_table(("a chip holds", "MiB"), _memory_rows(plan)),
        markdown_table(("FLOPs", "GFLOP an image"), _flops_rows(plan)),
    ]
    if plan.program:
        header = ("collective", "axis", "for", "times a step", "MiB", "in a loop", "between slices")
        parts += [
            markdown_table(header, _collective_rows(plan.program.collectives)),
            markdown_table(("a step takes at least", "ms"), _bound_rows(plan)),
            f"At most {plan.images_per_second:,.0f} images/s, limited by "
            f"{plan.program.bound.limit}; the run at least {plan.days:.2f} days, "
            f"{plan.chip_hours:,.0f} chip-hours. Logits: "
            f"{_bytes(plan.program.logits)} a chip.",
        ]
    if largest:
        parts.append(_largest_line(largest))
    return "\n\n".join(parts)


def comparison(plans: Sequence[Plan]) -> str:
    """Returns a Markdown table with a row for each plan."""
    header = ("topology", "chips", "batch", "fits", "GiB a chip", "of", "logits a chip",
              "GFLOP an image", "useful", "images/s, at most", "limited by", "days, at least",
              "chip-hours")  # fmt: skip
    return markdown_table(header, map(_comparison_row, plans))


def to_json(plan: Plan, largest: LargestBatch | None = None) -> dict[str, Any]:
    """Returns a plan's fields, and what follows from them, as JSON can hold them."""
    derived = {
        "fits": plan.memory.fits,
        "memory_total": plan.memory.total,
        "images_per_second": plan.images_per_second,
        "days": plan.days,
        "chip_hours": plan.chip_hours,
        "limited_by": plan.program.bound.limit if plan.program else None,
        "largest_batch": dataclasses.asdict(largest) if largest else None,
    }
    return dataclasses.asdict(plan) | derived


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
    def kind(c: Collective) -> tuple[str, str, str, bool, bool]:
        return c.kind, c.axes, c.purpose, c.in_loop, c.crosses_slices

    for key, same in itertools.groupby(sorted(collectives, key=kind), kind):
        group = list(same)
        times = sum(c.count for c in group)
        mib = sum(c.count * c.num_bytes for c in group) / 2**20
        yes = ["yes" if value else "no" for value in key[3:]]
        yield (*key[:3], f"{times:,}", f"{mib:,.3f}", *yes)


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
    memory, program = plan.memory, plan.program
    row = [
        plan.topology, f"{plan.num_chips:,}", f"{plan.batch_size:,}",
        "yes" if memory.fits else "no", f"{memory.total / GIB:.2f}",
        f"{memory.available / GIB:.2f}",
    ]  # fmt: skip
    useful = f"{plan.useful_flops / 1e9:.1f}"
    if program is None:
        return [*row, "", f"{plan.hand_flops / 1e9:.1f}", useful, "", "", "", ""]
    return [
        *row, _bytes(program.logits), f"{program.flops_per_image / 1e9:.1f}", useful,
        f"{plan.images_per_second:,.0f}", program.bound.limit, f"{plan.days:.2f}",
        f"{plan.chip_hours:,.0f}",
    ]  # fmt: skip


def _bytes(count: int) -> str:
    for unit, size in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
