"""What was found in a set of one's own, for people to read before anything runs."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from groupvit_jax.data.eval_sets.class_list import ClassList
from groupvit_jax.data.eval_sets.description import Description
from groupvit_jax.data.eval_sets.mask_values import Scan
from groupvit_jax.data.eval_sets.registry import SegmentationSet
from groupvit_jax.data.sources.masks import IGNORED, MaskedSource

_MOST_CLASSES, _MOST_FILES = 40, 5


def described(
    description: Description,
    classes: ClassList,
    source: MaskedSource,
    found: Scan,
    table: Mapping[int, int],
    notes: Sequence[str],
    left_out: Sequence[Path],
) -> SegmentationSet:
    """Return the set with its summary.

    Args:
      description: where it lies.
      classes: its classes.
      source: photos and masks.
      found: what the masks store.
      table: class of each of these values.
      notes: what was assumed.
      left_out: files that are neither a photo nor the mask of one.
    """
    opened = SegmentationSet(
        source,
        classes.names,
        classes.has_background,
        name=description.name,
        background_threshold=description.background_threshold,
        prompts=description.prompts,
    )
    lines = [f"{description.file}: {len(source)} photos, {len(opened.all_names)} classes"]
    lines += [f"  {note}" for note in notes]
    lines += _shares(opened.all_names, found, table)
    if left_out:
        names = ", ".join(file.name for file in left_out[:_MOST_FILES])
        more = ", ..." if len(left_out) > _MOST_FILES else ""
        count = len(left_out)
        lines.append(f"  {count} files left out, no photo and no mask of one: {names}{more}")
    return dataclasses.replace(opened, summary="\n".join(lines))


def _shares(names: Sequence[str], found: Scan, table: Mapping[int, int]) -> list[str]:
    """Return a line for each class, with its values and its share of the pixels."""
    pixels = [0] * (IGNORED + 1)
    values: list[list[str]] = [[] for _ in pixels]
    for value, class_ in table.items():
        pixels[class_] += found.pixels.get(value, 0)
        values[class_].append(found.shown(value))
    total = max(found.total, 1)
    lines = [
        f"  {_percent(pixels[i], total)} %  {name}  (value {', '.join(values[i]) or 'none'})"
        for i, name in enumerate(names)
        if pixels[i]
    ]
    if len(lines) > _MOST_CLASSES:
        lines = [*lines[:_MOST_CLASSES], f"  ... and {len(lines) - _MOST_CLASSES} more classes"]
    if absent := [name for i, name in enumerate(names) if not pixels[i]]:
        more = ", ..." if len(absent) > _MOST_CLASSES else ""
        lines.append(f"  in no mask: {', '.join(absent[:_MOST_CLASSES])}{more}")
    ignored = f"  (value {', '.join(values[IGNORED])})" if values[IGNORED] else ""
    return [*lines, f"  {_percent(pixels[IGNORED], total)} %  ignored{ignored}"]


def _percent(pixels: int, total: int) -> str:
    share = 100 * pixels / total
    return " <0.1" if 0 < share < 0.05 else f"{share:5.1f}"
