"""python -m tests.fuzz --inputs=12000: files of every kind, each kind in a process of its own.

Prints the outcomes and exits with 1 if a reader let a raw error through, crashed, hung, or took
more than a gigabyte; the files are kept in fuzz_failures/.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from tests.fuzz.kinds import KINDS
from tests.fuzz.runner import run

KEEP = Path("fuzz_failures")


def main() -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS)
    flags = parser.parse_args()
    if flags.kind:
        print(json.dumps(run(flags.kind, flags.inputs, flags.seed, KEEP)))
        return 0
    total, failed = 0, 0
    for kind in KINDS:
        command = [sys.executable, "-X", "faulthandler", "-m", "tests.fuzz", f"--kind={kind}"]
        command += [f"--inputs={-(-flags.inputs // len(KINDS))}", f"--seed={flags.seed}"]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if result.returncode:
            print(f"{kind:14} {'CRASH, exit code':40} {result.returncode:6}", flush=True)
            failed += 1
            continue
        outcomes = json.loads(result.stdout.splitlines()[-1])
        for outcome, number in sorted(outcomes.items(), key=lambda item: -item[1]):
            print(f"{kind:14} {outcome:40} {number:6}", flush=True)
            failed += number if outcome.startswith(("RAW", "OVER")) else 0
        total += sum(outcomes.values())
    print(f"{total} files, {failed} failures")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
