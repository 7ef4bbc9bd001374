"""Reads drawn files of a kind, watched for raw errors, time and memory."""

import collections
import logging
import signal
import tempfile
import time
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.kinds import KINDS

SECONDS, MEGABYTES = 10, 1000  # allowed for one file
LEFT = "(file in {})"


class HungError(BaseException):
    """A file takes too long."""


def _hang(*_: object) -> None:
    raise HungError


def run(name: str, num_inputs: int, number: int, keep: Path | None = None) -> dict[str, int]:
    """Returns how many files of a kind had each outcome; failures start with "RAW" or "OVER".

    Args:
      name: one of `KINDS`.
      num_inputs: how many files to draw.
      number: the seed.
      keep: where to write files that failed.
    """
    kind, outcomes = KINDS[name], collections.Counter[str]()
    logging.getLogger("groupvit_jax").setLevel(logging.CRITICAL)
    signal.signal(signal.SIGALRM, _hang)

    @seed(number)
    @settings(
        max_examples=num_inputs,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(kind.content)
    def read(content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"file{kind.ending}")
            path.write_bytes(content)
            outcome = _outcome(name, path)
        outcomes[outcome] += 1
        if keep and outcome.startswith(("RAW", "OVER")):
            keep.mkdir(parents=True, exist_ok=True)
            (keep / f"{name}-{sum(outcomes.values())}{kind.ending}").write_bytes(content)

    read()
    return dict(outcomes)


def _outcome(name: str, path: Path) -> str:
    _reset_peak()
    before, start = _peak_megabytes(), time.monotonic()
    signal.alarm(SECONDS)
    try:
        outcome = KINDS[name].use(path)
    except ValueError as error:
        sentence = str(path) in str(error) and "\n" not in str(error)
        outcome = "error that names the file" if sentence else f"RAW {error!r:.200}"
    except HungError:
        outcome = f"OVER {SECONDS} s"
    except Exception as error:
        outcome = f"RAW {error!r:.200}"
    finally:
        signal.alarm(0)
    if (taken := _peak_megabytes() - before) > MEGABYTES:
        outcome = f"OVER {MEGABYTES} MB: {taken:.0f} MB in {time.monotonic() - start:.1f} s"
    return outcome


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak_megabytes() -> float:
    [line] = [x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x]
    return int(line.split()[1]) / 1000
