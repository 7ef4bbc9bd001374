"""Accounts for the input: everything read was written, or dropped for a reason."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["Counts", "add_up", "table"]

BLANK = "blank caption"


@dataclasses.dataclass
class Counts:
    """Numbers of images and captions of a shard, by outcome.

    Attributes:
      read: images and captions in the input.
      written: images and captions in the shard.
      dropped: reason -> images and captions.
    """

    read: list[int] = dataclasses.field(default_factory=lambda: [0, 0])
    written: list[int] = dataclasses.field(default_factory=lambda: [0, 0])
    dropped: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    def write(self, num_captions: int, num_blank: int) -> None:
        """Counts a written image."""
        _add(self.read, 1, num_captions)
        _add(self.written, 1, num_captions - num_blank)
        if num_blank:
            self._drop(BLANK, 0, num_blank)

    def drop(self, reason: str, num_captions: int) -> None:
        """Counts an image that is not written."""
        _add(self.read, 1, num_captions)
        self._drop(reason, 1, num_captions)

    def _drop(self, reason: str, images: int, captions: int) -> None:
        _add(self.dropped.setdefault(reason, [0, 0]), images, captions)

    def as_dict(self) -> dict[str, Any]:
        """Returns the counts for a manifest."""

        def named(counts: list[int]) -> dict[str, int]:
            return {"images": counts[0], "captions": counts[1]}

        dropped = {reason: named(counts) for reason, counts in sorted(self.dropped.items())}
        return {"read": named(self.read), "written": named(self.written), "dropped": dropped}


def _add(counts: list[int], images: int, captions: int) -> None:
    counts[0] += images
    counts[1] += captions


def add_up(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Adds up the dictionaries of `Counts.as_dict` of several shards.

    Raises:
      ValueError: the numbers read differ from those written plus dropped.
    """
    total = Counts()
    for record in records:
        _add(total.read, *record["read"].values())
        _add(total.written, *record["written"].values())
        for reason, counts in record["dropped"].items():
            _add(total.dropped.setdefault(reason, [0, 0]), *counts.values())
    outcomes = [total.written, *total.dropped.values()]
    found = [sum(column) for column in zip(*outcomes, strict=True)]
    if found != total.read:
        raise ValueError(f"counts don't add up: {total.read} read, {found} written or dropped")
    return total.as_dict()


def table(counts: Mapping[str, Any]) -> str:
    """Formats the counts as a readable table."""
    dropped = collections.Counter({r: c["images"] for r, c in counts["dropped"].items()})
    rows = [("read", counts["read"]), ("written", counts["written"])]
    rows += [(f"dropped: {r}", counts["dropped"][r]) for r, _ in dropped.most_common()]
    width = max(len(name) for name, _ in rows)
    lines = [f"{'':{width}}  {'images':>12}  {'captions':>12}"]
    lines += [f"{name:{width}}  {c['images']:12,}  {c['captions']:12,}" for name, c in rows]
    return "\n".join(lines)
