import dataclasses
import json

import numpy as np
import pytest

from configs import tiny
from groupvit_jax.runs import sweep_files
from groupvit_jax.runs.sweep_files import Sweep
from groupvit_jax.sweep import folder as folder_lib
from groupvit_jax.sweep.trials import NAME_LENGTH, command_of, folder_name, make_trial
from launch.overrides import read
from tests.sweep import fake


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ({"optimizer.learning_rate": 1e-3, "seed": 2}, "007-learning_rate=0.001-seed=2"),
        ({"model.image.depths": (6, 6)}, "007-depths=_6_6"),
        ({"data.sources.a.pattern": "/x/*.tar"}, "007-pattern=_x_.tar"),
        ({"a.width": 1, "b.width": 2}, "007-a.width=1-b.width=2"),
        ({"init_from": "../../etc"}, "007-init_from=.._.._etc"),
        ({}, "007-base"),
    ],
)
def test_folders_are_named_by_number_and_settings(overrides, name):
    assert folder_name(7, overrides) == name


def test_long_settings_are_cut():
    name = folder_name(7, {f"field_{i}": "x" * 20 for i in range(9)})
    assert len(name) <= NAME_LENGTH
    assert name.startswith("007-field_0=")


def test_the_command_of_a_trial_gives_its_settings(tmp_path):
    overrides = {
        "optimizer.learning_rate": np.float64(2e-3),
        "train.batch_size": np.int64(8),
        "model.image.depths": (1, 2, 1),
        "tensorboard": False,
        "data.sources": {"own": {"kind": "webdataset", "pattern": "it's here/{0..3}.tar"}},
        "optimizer.groups": [["text/.*", 0.1]],
    }
    trial = make_trial(0, overrides, tiny.get_config().to_dict())
    sweep = Sweep("s", "configs/tiny.py", ("--config.seed=3",), "", "max", (trial,))
    folder_lib.create(tmp_path, sweep)
    sweep = sweep_files.read_sweep(tmp_path)
    command = command_of(sweep, sweep.trials[0], tmp_path, ["--compilation_cache=c"])
    assert command[1:3] == ["-m", "launch.train"]
    assert command[-2:] == [f"--workdir={tmp_path / trial.folder}", "--compilation_cache=c"]
    config, _ = read(command[2:])
    assert (config.optimizer.learning_rate, config.train.batch_size, config.seed) == (2e-3, 8, 3)
    assert config.model.image.depths == (1, 2, 1)
    assert config.tensorboard is False
    assert config.data.sources.own.pattern == "it's here/{0..3}.tar"
    assert config.optimizer.groups == (("text/.*", 0.1),)


def test_what_is_written_is_read_again(tmp_path):
    sweep = fake.make_sweep(tmp_path, [(1, 0), (2, 0)])
    assert sweep_files.read_sweep(tmp_path) == sweep
    workdir = tmp_path / sweep.trials[1].folder
    record = dataclasses.replace(sweep_files.read_record(workdir), state="running", attempts=2)
    sweep_files.write_record(workdir, record)
    folder_lib.create(tmp_path, sweep)  # leaves the states
    assert sweep_files.read_record(workdir) == record
    assert {
        "id",
        "overrides",
        "command",
        "state",
        "exit_status",
        "attempts",
        "started",
        "ended",
    } <= (json.loads((workdir / "trial.json").read_text()).keys())
    assert sweep_files.read_sweep(tmp_path / "elsewhere") is None


def test_only_the_last_attempt_is_shown_of_a_log(tmp_path):
    assert folder_lib.log_tail(tmp_path) == []
    words = [f"word {i}" for i in range(9)]
    attempts = [f"{folder_lib.ATTEMPT}{i}" for i in (1, 2)]
    for said, tail in (
        ([attempts[0], *words], words[1:]),
        ([attempts[0], *words, attempts[1], "end"], ["end"]),
        ([attempts[0], *words, attempts[1]], []),
        ([attempts[0], "error: x", *words], [*words[1:], "error: x"]),
    ):
        (tmp_path / "log.txt").write_text("\n".join(said) + "\n")
        assert folder_lib.log_tail(tmp_path) == tail


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"trials": [{"number": 1}]}'])
def test_a_file_of_something_else_is_one_line(tmp_path, content):
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(ValueError, match=r"sweep\.json: .*expected") as error:
        sweep_files.read_sweep(tmp_path)
    assert "\n" not in str(error.value)


def trial(i, value, base=0):
    return make_trial(i, {"a": value}, {"a": value, "b": base})


def sweep_of(*trials):
    return Sweep("s", "c", (), "", "max", trials)


def test_trials_may_be_added_but_not_changed(tmp_path):
    old = sweep_of(trial(0, 1), trial(1, 2))
    folder_lib.check_same_sweep(tmp_path, old, old)
    folder_lib.check_same_sweep(tmp_path, old, sweep_of(*old.trials, trial(2, 3)))
    for new, message in (
        (sweep_of(old.trials[0], trial(1, 5)), "trial 1 was a=2 and is now a=5"),
        (sweep_of(old.trials[0]), "trial 1 was a=2 and is now not there any more"),
        (sweep_of(trial(0, 1, base=7), old.trials[1]), "trial 0 was a=1 and is now the same with"),
    ):
        with pytest.raises(ValueError, match=message):
            folder_lib.check_same_sweep(tmp_path, old, new)
