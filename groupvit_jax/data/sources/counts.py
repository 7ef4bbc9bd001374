"""Accounts for an input: everything read was used, dropped for a reason, or matched to nothing."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["Counts", "Tally", "add_up", "sentence", "table"]

BLANK, TOO_LONG = "blank caption", "caption too long"
_NUM_EXAMPLES = 3  # named of each reason


@dataclasses.dataclass
class Tally:
    """Numbers of things with one outcome.

    Attributes:
      images: encoded images.
      captions: texts.
      files: members of tar shards.
      examples: names of a few of them.
    """

    images: int = 0
    captions: int = 0
    files: int = 0
    examples: list[str] = dataclasses.field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Add other numbers, and examples while there are few."""
        self.images += other.images
        self.captions += other.captions
        self.files += other.files
        room = _NUM_EXAMPLES - len(self.examples)
        self.examples += other.examples[: max(room, 0)]

    @property
    def numbers(self) -> tuple[int, int, int]:
        """Images, captions, files."""
        return self.images, self.captions, self.files

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON, without those of tars where there is none."""
        fields = dataclasses.asdict(self)
        return {name: fields[name] for name in fields if fields[name] or name in _ALWAYS}


_ALWAYS = ("images", "captions")


@dataclasses.dataclass
class Counts:
    """Numbers of images, captions and files of an input, by outcome.

    Attributes:
      read: in the input.
      written: used, or written to a shard.
      dropped: reason -> samples that can't be used.
      unmatched: reason -> members of tars that belong to no sample.
      replaced: used captions with U+FFFD, which replaces bytes that aren't UTF-8.
    """

    read: Tally = dataclasses.field(default_factory=Tally)
    written: Tally = dataclasses.field(default_factory=Tally)
    dropped: dict[str, Tally] = dataclasses.field(default_factory=dict)
    unmatched: dict[str, Tally] = dataclasses.field(default_factory=dict)
    replaced: int = 0

    def write(self, item: Tally, unused: Mapping[str, int] | None = None) -> None:
        """Count a used image; `unused` of its captions are dropped, by reason."""
        self.read.add(item)
        self.written.add(item)
        for reason, captions in (unused or {}).items():
            # The image itself is still written.
            self.written.captions -= captions
            self.dropped.setdefault(reason, Tally()).add(Tally(captions=captions))

    def drop(self, reason: str, item: Tally) -> None:
        """Count a sample that isn't used."""
        self.read.add(dataclasses.replace(item, examples=[]))
        self.dropped.setdefault(reason, Tally()).add(item)

    def leave(self, reason: str, item: Tally) -> None:
        """Count members that belong to no sample."""
        # Examples belong to the reason, not to all that was read.
        self.read.add(dataclasses.replace(item, examples=[]))
        self.unmatched.setdefault(reason, Tally()).add(item)

    def as_dict(self) -> dict[str, Any]:
        """Return the counts for a manifest or an index."""

        def by_reason(tallies: Mapping[str, Tally]) -> dict[str, Any]:
            return {reason: tallies[reason].as_dict() for reason in sorted(tallies)}

        counts: dict[str, Any] = {"read": self.read.as_dict(), "written": self.written.as_dict()}
        counts["dropped"] = by_reason(self.dropped)
        if self.unmatched:
            counts["unmatched"] = by_reason(self.unmatched)
        if self.replaced:
            counts["replaced"] = self.replaced
        return counts


def add_up(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up the dictionaries of `Counts.as_dict` of several shards.

    Raises:
      ValueError: the numbers read differ from those written, dropped or unmatched.
    """
    total = Counts()
    for record in records:
        total.read.add(Tally(**record["read"]))
        total.written.add(Tally(**record["written"]))
        total.replaced += record.get("replaced", 0)
        for name in ("dropped", "unmatched"):
            for reason, fields in record.get(name, {}).items():
                getattr(total, name).setdefault(reason, Tally()).add(Tally(**fields))
    outcomes = [total.written, *total.dropped.values(), *total.unmatched.values()]
    found = tuple(sum(column) for column in zip(*(t.numbers for t in outcomes), strict=True))
    if found != total.read.numbers:
        raise ValueError(
            f"counts don't add up: {total.read.numbers} images, captions and files read, {found} "
            "written, dropped or unmatched"
        )
    return total.as_dict()


def table(counts: Mapping[str, Any]) -> str:
    """Format the counts as a readable table; files only of tars, examples of unmatched ones."""
    rows = [("read", counts["read"]), ("written", counts["written"])]
    for name in ("dropped", "unmatched"):
        found = counts.get(name, {})
        by_number = sorted(found, key=lambda r: (-found[r]["images"], -found[r].get("files", 0)))
        rows += [(f"{name}: {reason}", found[reason]) for reason in by_number]
    columns = ["images", "captions", *(["files"] if "files" in counts["read"] else [])]
    width = max(len(name) for name, _ in rows)
    lines = [f"{'':{width}}" + "".join(f"  {column:>12}" for column in columns)]
    for name, found in rows:
        line = f"{name:{width}}" + "".join(f"  {found.get(column, 0):12,}" for column in columns)
        examples = found.get("examples") if name.startswith("unmatched") else None
        lines.append(line + (f"  {', '.join(examples)}" if examples else ""))
    if counts.get("replaced"):
        lines.append(f"captions with U+FFFD in place of bytes not in UTF-8: {counts['replaced']:,}")
    return "\n".join(lines)


def sentence(counts: Mapping[str, Any]) -> str:
    """Format what was not used, by reason with examples, for one line of a log or an error."""
    parts = []
    for name in ("dropped", "unmatched"):
        for reason, found in counts.get(name, {}).items():
            number = found["images"] or found.get("files", 0) or found["captions"]
            examples = "; ".join(found.get("examples", []))
            parts.append(f"{number:,} x {reason}" + (f" ({examples})" if examples else ""))
    return ", ".join(parts) or "nothing"
