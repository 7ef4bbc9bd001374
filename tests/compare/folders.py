"""Folders of runs as launch.train and launch.sweep leave them, and runs without a folder."""

import json
from pathlib import Path

from groupvit_jax.compare.groups import compare
from groupvit_jax.compare.metric import Metric
from groupvit_jax.runs.reading import Run
from groupvit_jax.runs.sweep_files import Record, write_record

MIOU = Metric("validation/miou", "max", "as asked for")


def write_run(folder, config, records, trial=None):
    """Writes a run's folder.

    Records are dictionaries, or text as it stands; a trial is fields of its `trial.json`.
    """
    folder.mkdir(parents=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if records is not None:
        text = records if isinstance(records, str) else lines(records)
        (folder / "metrics.jsonl").write_text(text)
    if trial is not None:
        write_record(folder, Record(**{"id": 0, "overrides": {}, "command": (), **trial}))
    return folder


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def config(weight=0.0, rate=1e-3, seed=0, **changes):
    return {
        "seed": seed,
        "loss": {"local_weight": weight},
        "optimizer": {"learning_rate": rate},
        "train": {"num_steps": 20},
        "evaluators": {"validation": {"kind": "benchmark"}},
        **changes,
    }


def records(value, steps=20):
    """A metric that rises to `value` and a loss that falls."""
    return [
        {
            "step": step,
            "loss": 4.0 - 2.0 * step / steps,
            "validation/miou": value * step / steps,
            "validation/iou/dog": 0.5,
        }
        for step in range(5, steps + 1, 5)
    ]


def write_sweep(root, values):
    """Writes finished runs: values of the metric at the end by (weight, rate, seed)."""
    for i, ((weight, rate, seed), value) in enumerate(values.items()):
        write_run(root / f"{i:03d}-run", config(weight, rate, seed), records(value))
    return root


def run(settings, value, seed=0, state="finished", name=""):
    """A run in memory, of flat settings."""
    flat = {"seed": seed, **settings}
    name = name or f"{settings}-{seed}"
    points = [] if value is None else [{"step": 10, "validation/miou": value}]
    return Run(name, Path(name), flat, True, ("", ""), state, "", points)


def compared(values, metric=MIOU, field="loss.local_weight"):
    """A comparison of samples, a value for each seed, by the value of one setting."""
    runs = [
        run({field: setting}, value, seed)
        for setting, sample in values.items()
        for seed, value in enumerate(sample)
    ]
    return compare(runs, metric)
