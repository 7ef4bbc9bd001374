"""A sweep of trials that only pretend to train, in milliseconds."""

import dataclasses
import sys

from groupvit_jax.runs.sweep_files import Sweep, read_record
from groupvit_jax.sweep import folder as folder_lib
from groupvit_jax.sweep.trials import make_trial

# Notes its start, does its steps, saves at SIGTERM as launch.train does.
PROGRAM = """
import json, pathlib, signal, sys, time
workdir, steps, code = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
metrics = workdir / "metrics.jsonl"
done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
with (workdir / "starts").open("a") as starts:
    starts.write(f"after step {done}\\n")
with metrics.open("a", buffering=1) as file:
    for step in range(done + 1, steps + 1):
        file.write(json.dumps({"step": step, "loss": 1 / step}) + "\\n")
        time.sleep(0.02)
        if stop:
            time.sleep(0.3)  # saving takes a while
            sys.exit(143)
if (workdir / "mended").exists():
    code = 0
print("the last words of", workdir.name)
sys.exit(code)
"""


def make_sweep(root, trials):
    """Returns a sweep of (steps, exit code) pairs, written to its folder."""
    made = tuple(
        make_trial(i, {"train.steps": steps, "code": code}, {"i": i})
        for i, (steps, code) in enumerate(trials)
    )
    sweep = Sweep("fake", "configs/none.py", (), "", "max", made)
    folder_lib.create(root, sweep)
    return sweep


def command_of(sweep, trial, root, more=()):
    """Stands in for `trials.command_of`."""
    return [sys.executable, "-S", "-c", PROGRAM, str(root / trial.folder),
            *map(str, trial.overrides.values()), *more]  # fmt: skip


def records(sweep, root):
    return [read_record(root / trial.folder) for trial in sweep.trials]


def states(sweep, root):
    return [record.state for record in records(sweep, root)]


def starts(sweep, root):
    files = [root / trial.folder / "starts" for trial in sweep.trials]
    return [len(file.read_text().splitlines()) if file.exists() else 0 for file in files]


def outcomes(sweep, root):
    """Everything of the records that doesn't depend on time."""
    return [
        dataclasses.replace(record, started=None, ended=None) for record in records(sweep, root)
    ]
