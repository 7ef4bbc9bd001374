"""Results in a folder: each kept as soon as there is one, and reused only while it still holds."""

import datetime
import functools
import hashlib
import json
import math
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from groupvit_jax.eval import results

FILE = "results.json"


@functools.cache
def code_version() -> str:
    """Return the package's version with a hash of its code, which a checkout's edits change."""
    package, digest = Path(__file__).parents[1], hashlib.sha256()
    # Sorted: the order of files is the file system's.
    for file in sorted(package.rglob("*.py")):
        digest.update(file.read_bytes())
    try:
        version = metadata.version("groupvit_jax")
    except metadata.PackageNotFoundError:  # run from a checkout that isn't installed
        version = "0"
    return f"{version}+{digest.hexdigest()[:12]}"


class ResultStore:
    """The results of one checkpoint in a folder.

    Attributes:
      content: of results.json: `checkpoint`, `environment` and `benchmarks`, the results by row.
      set_aside: where results of another checkpoint were moved to; None if there were none.
      dropped: rows of sets whose files have changed since.
    """

    def __init__(
        self, folder: Path, checkpoint: Mapping[str, str], environment: Mapping[str, Any]
    ) -> None:
        """Read what was measured there before.

        Raises:
          ValueError: the folder's results can't be read.
        """
        self._folder = folder
        self.set_aside: Path | None = None
        self.dropped: list[str] = []
        self._reserved: dict[str, Any] = {}
        before = results.read(folder / FILE)
        found = before.get("checkpoint", {}).get("sha256")
        if before and found != checkpoint["sha256"]:
            self.set_aside = folder / f"results-{str(found)[:12]}.json"
            results.write(self.set_aside, _valid_json(before))
        same = before["benchmarks"] if before and self.set_aside is None else {}
        self.content: dict[str, Any] = {
            "checkpoint": dict(checkpoint),
            "environment": dict(environment),
            "benchmarks": same,
        }

    def row_of(
        self, name: str, identity: Mapping[str, Any]
    ) -> tuple[str, Mapping[str, Any] | None]:
        """Return the row for a measurement, and its result if that still holds.

        A result holds for the same set (its place and fingerprint), settings and version; weights
        are those of the store. Results of the same place with other content are dropped. Other
        settings get a row of their own.

        Args:
          name: of the set.
          identity: `set`, `settings` and `version`.
        """
        # As it is read back from the file: tuples are lists there, and NaN is null.
        identity = json.loads(_valid_json(identity))
        benchmarks = self.content["benchmarks"]
        for row in [row for row in benchmarks if _outdated(row, benchmarks[row], name, identity)]:
            del benchmarks[row]
            self.dropped.append(row)
        for row, entry in benchmarks.items():
            if entry["set"] == identity["set"] and entry["settings"] == identity["settings"]:
                # A result of another version gives its row to the new one.
                return row, entry if entry.get("version") == identity["version"] else None
        number, row = 1, name
        while row in benchmarks:
            number += 1
            row = f"{name} {number}"
        return row, None

    def reserve(self, row: str, entry: Mapping[str, Any]) -> None:
        """Take a row for a result to come; `release` gives it back if none comes."""
        self._reserved[row] = self.content["benchmarks"].get(row)
        self.content["benchmarks"][row] = {**json.loads(_valid_json(entry)), "reserved": True}

    def release(self) -> None:
        """Give back the rows that were reserved and got no result."""
        for row, before in self._reserved.items():
            if "reserved" in self.content["benchmarks"][row]:
                del self.content["benchmarks"][row]
                if before is not None:
                    self.content["benchmarks"][row] = before
        self._reserved.clear()

    def keep(self, row: str, entry: Mapping[str, Any]) -> None:
        """Keep a result, with the time."""
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        self.content["benchmarks"][row] = {**json.loads(_valid_json(entry)), "measured": now}

    def write(self) -> None:
        """Write results.json and results.md."""
        results.write(self._folder / FILE, _valid_json(self.content))
        results.write(self._folder / "results.md", results.markdown(self.content))


def _outdated(row: str, entry: Mapping[str, Any], name: str, identity: Mapping[str, Any]) -> bool:
    """Return whether a result is of the set as it was before."""
    if "set" not in entry:  # by a version that didn't tell sets apart
        return row == name
    of_set, now = entry["set"], identity["set"]
    same_place = [of_set[key] == now[key] for key in ("name", "path")]
    return all(same_place) and of_set != now


def _valid_json(value: Any) -> str:
    """Return JSON in which numbers that JSON doesn't know, NaN and infinity, are null."""
    return json.dumps(_finite(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
