import io
import json

from rich.console import Console

from configs import tiny
from groupvit_jax.runs.sweep_files import Sweep
from groupvit_jax.sweep import overview
from groupvit_jax.sweep.folder import create
from groupvit_jax.sweep.trials import make_trial


def test_a_row_has_what_differs_and_the_last_and_best_metrics(tmp_path):
    settings = [{"seed": 0, "loss.kind": "softmax"}, {"seed": 0, "loss.kind": "sigmoid", "x": 1}]
    trials = tuple(make_trial(i, s, tiny.get_config().to_dict()) for i, s in enumerate(settings))
    sweep = Sweep("s", "c", (), "val/miou", "max", trials)
    create(tmp_path, sweep)
    lines = [{"step": 5, "loss": 2.0, "val/miou": 0.5}, {"step": 9, "loss": 1.5, "val/miou": None}]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"torn'
    (tmp_path / trials[0].folder / "metrics.jsonl").write_text(text)
    first, second = overview.rows(sweep, tmp_path)
    assert first == {
        "trial": 0,
        "kind": "softmax",
        "x": None,
        "state": "pending",
        "step": 9,
        "loss": 1.5,
        "val/miou": 0.5,
    }
    assert (second["x"], second["step"], second["val/miou"]) == (1, None, None)
    output = io.StringIO()
    Console(file=output, width=100).print(overview.render([first, second]))
    assert "softmax" in output.getvalue()
    assert overview.summary([first, second]) == "2 trials: 2 pending"


def test_the_best_value_follows_the_mode():
    assert overview.best([1.0, None, 3.0], "max") == 3.0
    assert overview.best([1.0, None, 3.0], "min") == 1.0
    assert overview.best([None], "max") is None
