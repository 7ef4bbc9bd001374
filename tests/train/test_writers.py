import json
import subprocess
import sys
import threading
import time

import pytest

from groupvit_jax.train import writers


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def write(workdir, resume_step, steps, **changes):
    writer = writers.make_writer(workdir, resume_step, primary=True, **changes)
    for step in steps:
        writer.write(step, {"loss": 1.0 / step})
    return writer


def test_other_processes_write_nothing(tmp_path):
    writer = writers.make_writer(tmp_path, 0, primary=False)
    writer.write(1, {"loss": 1.0})
    writer.close()
    assert list(tmp_path.iterdir()) == []


class FakeWandb:
    """Records what a run is started with and what it is given."""

    def __init__(self):
        self.starts, self.logged = [], []

    def init(self, **options):
        self.starts.append(options)
        return self

    def log(self, metrics, step):
        self.logged.append((step, metrics))

    def finish(self):
        self.logged.append("finished")


def test_wandb_continues_under_the_same_id(tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for resume_step, step in ((0, 5), (5, 10)):
        settings = dict(wandb_project="mine", wandb_group="rates")
        write(tmp_path, resume_step, [step], **settings).close()
    first, second = wandb.starts
    assert first["id"] == second["id"]
    assert first["resume"] == second["resume"] == "allow"
    assert (first["project"], first["group"]) == ("mine", "rates")
    assert wandb.logged == [(5, {"loss": 0.2}), "finished", (10, {"loss": 0.1}), "finished"]


class Hanging(FakeWandb):
    """A service that takes connections and never answers, as one behind a broken proxy."""

    def init(self, **options):
        threading.Event().wait()


class Refusing(FakeWandb):
    def init(self, **options):
        raise ConnectionError("api.example\n refused")


class FailingLater(FakeWandb):
    def log(self, metrics, step):
        raise RuntimeError("the run was deleted")


@pytest.mark.parametrize(
    ("service", "reason"),
    [
        (Hanging, "no answer 0.2 s after the last step"),
        (Refusing, "ConnectionError: api.example refused"),
        (FailingLater, "RuntimeError: the run was deleted"),
    ],
)
def test_a_service_that_fails_costs_the_curves_and_not_the_run(
    tmp_path, monkeypatch, caplog, service, reason
):
    monkeypatch.setitem(sys.modules, "wandb", service())
    monkeypatch.setattr(writers, "CLOSE_SECONDS", 0.2)
    start = time.monotonic()
    write(tmp_path, 0, range(1, 4), wandb_project="mine").close()
    assert time.monotonic() - start < 2
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    assert [record.getMessage() for record in caplog.records] == [
        f"Weights & Biases: no more curves ({reason}); the run goes on, and metrics.jsonl has all "
        "metrics"
    ]


def test_a_service_without_an_answer_takes_bounded_memory(monkeypatch, caplog):
    monkeypatch.setattr(writers, "_MAX_WAITING", 3)
    writer = writers.Expendable("service", Hanging().init, close_seconds=0.1)
    for step in range(10):
        writer.write(step, {})
    writer.close()
    (record,) = caplog.records
    assert "no answer while 3 records wait" in record.getMessage()


def test_tensorboard_that_fails_costs_the_curves(tmp_path, monkeypatch, caplog):
    class Failing:
        def __init__(self, directory):
            raise ImportError("a broken installation")

    monkeypatch.setattr(writers.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(writers, "CluWriter", Failing)
    write(tmp_path, 0, [1], tensorboard=True).close()
    assert len(lines(tmp_path)) == 1
    assert "TensorBoard: no more curves (ImportError: a broken" in caplog.text


def test_without_tensorflow_the_log_says_what_is_missing(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with caplog.at_level("INFO"):
        write(tmp_path, 0, [1], tensorboard=True)
    assert [record.message for record in caplog.records] == [
        "TensorFlow is not installed: no TensorBoard files, only metrics.jsonl"
    ]
    assert len(lines(tmp_path)) == 1


WRITE_EVENTS = """
import sys
from pathlib import Path
from groupvit_jax.train import writers
writer = writers.make_writer(Path(sys.argv[1]), 0, primary=True, tensorboard=True)
writer.write(7, {"loss": 0.25})
writer.close()
from tensorboard.backend.event_processing import event_accumulator
events = event_accumulator.EventAccumulator(sys.argv[1])
events.Reload()
(tag,) = events.Tags()["tensors"]
(event,) = events.Tensors(tag)
from tensorboard.util.tensor_util import make_ndarray
print(tag, event.step, make_ndarray(event.tensor_proto))
"""


@pytest.mark.slow
def test_tensorboard_gets_the_scalars(tmp_path):
    pytest.importorskip("tensorflow")
    command = [sys.executable, "-c", WRITE_EVENTS, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["loss", "7", "0.25"]


def test_importing_training_does_not_import_tensorflow():
    code = "import sys, launch.train; print('tensorflow' in sys.modules, 'wandb' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["False", "False"]
