"""Where the wall time of a run goes, over all its starts.

Each record of the metrics has `goodput/seconds`, the wall time of the run so far, and a share of it
for each of `KINDS`; the rest is start-up and everything else. A start that resumes continues from
the record of the step it resumes from. The time between that record and the last one of the start
before is lost: its steps are done again. Time in which no process ran is not counted.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

SECONDS = "goodput/seconds"
KINDS = ("stepping", "input", "saving", "evaluating", "compiling", "lost")


class Goodput:
    """Adds up the seconds of each kind."""

    def __init__(
        self,
        earlier: Mapping[str, float] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Start counting.

        Args:
          earlier: seconds by kind, and all of them as "", of the starts before; see `spent_before`.
          clock: returns seconds.
        """
        self._seconds = dict.fromkeys(KINDS, 0.0) | dict(earlier or {})
        self._clock = clock
        self._start = clock() - self._seconds.pop("", 0.0)

    def add(self, kind: str, seconds: float) -> None:
        """Count seconds of a kind; negative ones correct what was counted before."""
        self._seconds[kind] += seconds

    @contextlib.contextmanager
    def spending(self, kind: str) -> Iterator[None]:
        """Count the time of the block."""
        start = self._clock()
        yield
        self.add(kind, self._clock() - start)

    def record(self) -> dict[str, float]:
        """Return the wall time so far and the share of each kind."""
        wall = max(self._clock() - self._start, 1e-9)
        shares = {f"goodput/{kind}": seconds / wall for kind, seconds in self._seconds.items()}
        return {SECONDS: wall, **shares}


def spent_before(records: Sequence[Mapping[str, Any]], resume_step: int) -> dict[str, float]:
    """Return the seconds by kind of the earlier starts, all of them as "".

    Args:
      records: all records of the metrics file, also those beyond the step that is resumed from.
      resume_step: that step.
    """
    timed = [record for record in records if record.get(SECONDS)]
    kept = [record for record in timed if record["step"] <= resume_step]
    if not timed:
        return {}
    last = kept[-1] if kept else {SECONDS: 0.0}
    wall = max(record[SECONDS] for record in timed)
    spent = {kind: last[SECONDS] * (last.get(f"goodput/{kind}") or 0.0) for kind in KINDS}
    spent["lost"] += wall - last[SECONDS]
    return {"": wall, **spent}


def describe(record: Mapping[str, Any]) -> str:
    """Return the shares of a record as text; "" for a record without them."""
    found = {kind: record.get(f"goodput/{kind}") for kind in KINDS}
    return ", ".join(f"{kind} {share:.0%}" for kind, share in found.items() if share is not None)
