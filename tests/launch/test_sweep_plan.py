"""What is wrong with trials is found before any of them starts."""

import json
import os
from pathlib import Path

import pytest

from groupvit_jax.runs import exit_codes
from groupvit_jax.runs.sweep_files import read_sweep
from launch import overrides, sweep, sweep_plan
from tests.launch.test_train import small_config

READY = sorted(p for p in Path("configs/sweeps").glob("*.py") if p.stem != "__init__")


@pytest.fixture
def base(shards, tmp_path):
    path = tmp_path / "base.json"
    path.write_text(json.dumps(small_config(shards).to_dict()))
    return path


def write(folder, trials, base="", more=""):
    path = folder / "mine.py"
    path.write_text(f"BASE = {str(base)!r}\n{more}\ndef get_sweep():\n    return {trials!r}\n")
    os.utime(path, (0, 0))  # as if every change came within the same second
    return path


def run(folder, trials, base, *arguments, more=""):
    command = [f"--sweep={write(folder, trials, base, more)}", f"--output={folder}/out"]
    return sweep.main(["launch.sweep", *command, *arguments])


def test_all_errors_of_all_trials_are_listed_and_nothing_starts(base, tmp_path, capsys):
    trials = [
        {"optimizer.lerning_rate": 1e-3, "train.batch_size": 16.5},
        {"train.batch_size": 12},
        {"seed": 1},
        {"optimizer.learning_rate": "fast"},
        {"model.image.width": 15},
        {"train.batch_size": 16, "train.micro_batch_size": 6},
        {"data.sources.pairs.pattern": f"{tmp_path}/none/*.tar"},
        {"wandb_project": 5},
        {"evaluators": {"x": {"kind": "guess"}}},
    ]
    with pytest.raises(SystemExit) as end:
        run(tmp_path, trials, base)
    assert end.value.code == exit_codes.BAD_INPUT
    *errors, last = capsys.readouterr().err.splitlines()
    expected = {
        0: ("the nearest is config.optimizer.learning_rate", "train.batch_size: '16.5' found"),
        1: ("config.train.batch_size: 12 found, expected a multiple of 8",),
        3: ("config.optimizer.learning_rate: 'fast' found, expected a number over 0",),
        4: ("model.image.width: 15 found, expected a multiple of num_heads 2",),
        5: ("config.train.micro_batch_size: 6 found, expected a divisor",),
        6: ("none/*.tar",),
        7: ("config.wandb_project: 5 found, expected a text",),
        8: ("config.evaluators.x.kind: 'guess' found",),
    }
    for line, (number, texts) in zip(errors, expected.items(), strict=True):
        assert line.startswith(f"error: trial {number} (")
        for text in texts:
            assert text in line
    assert last == "error: 8 trials are wrong, nothing was started"
    assert not (tmp_path / "out").exists()


def test_a_dry_run_prints_the_commands_and_writes_nothing(base, tmp_path, capsys):
    assert run(tmp_path, [{"seed": 1}, {"seed": 2}], base, "--dry_run") == 0
    commands = [line for line in capsys.readouterr().out.splitlines() if "launch.train" in line]
    assert len(commands) == 2
    assert f"--config={base} --config.seed=2 --workdir={tmp_path}/out/001-seed=2" in commands[1]
    assert not (tmp_path / "out").exists()


def test_trials_of_the_same_configuration_run_once(base, tmp_path):
    trials = [{"seed": 0}, {}, {"seed": 1}, {"optimizer.b1": 0.9}]
    planned = sweep_plan.plan(str(write(tmp_path, trials, base)), "s")
    assert [trial.overrides for trial in planned.sweep.trials] == [{"seed": 0}, {"seed": 1}]
    assert planned.notes == [
        "base: the same configuration as seed=0, left out",
        "b1=0.9: the same configuration as seed=0, left out",
    ]


def test_runs_of_weights_and_biases_are_grouped_by_the_sweep(base, tmp_path):
    file = str(write(tmp_path, [{}], base))
    planned = sweep_plan.plan(file, "rates", arguments=["--config.wandb_project=p"])
    assert planned.configs[0].wandb_group == "rates"
    assert "--config.wandb_group=rates" in planned.sweep.arguments
    assert sweep_plan.plan(file, "rates").configs[0].wandb_group == ""


def test_flags_take_precedence_over_the_file(base, tmp_path):
    file = str(write(tmp_path, [{}], base, more="METRIC = 'a/b'"))
    assert sweep_plan.plan(file, "s").sweep.metric == "a/b"
    planned = sweep_plan.plan(file, "s", config="configs/tiny.py", metric="c/d")
    assert (planned.sweep.config, planned.sweep.metric) == ("configs/tiny.py", "c/d")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("BASE = 'configs/tiny.py'", r"no get_sweep\(\) found"),
        ("def get_sweep(): return [{}]", "no BASE found"),
        ("BASE = 'none.py'\ndef get_sweep(): return [{}]", "--config=none.py: no such file"),
        ("BASE = 'configs/tiny.py'\ndef get_sweep(): return []", "returns no trial"),
        ("BASE = 'configs/tiny.py'\ndef get_sweep(): return ['seed']", "trial 0 is 'seed'"),
    ],
)
def test_a_wrong_sweep_file_is_one_line(tmp_path, content, message):
    (tmp_path / "x.py").write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        sweep_plan.plan(str(tmp_path / "x.py"), "s")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--output: missing"),
        (["--output=x"], "--sweep: missing"),
        (["--output=x", "--sweep=none.py"], "--sweep=none.py: no such file"),
        (["--output=x", "--sweep=none.py", "--workdir=y"], "--workdir=y: unexpected argument"),
        (["--output=x", "--trial=0"], "no sweep.json found"),
    ],
)
def test_wrong_flags_are_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        sweep.main(["launch.sweep", *arguments])
    assert end.value.code == exit_codes.BAD_INPUT
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_ready_sweeps_are_what_their_configuration_allows(path):
    planned = sweep_plan.plan(str(path), path.stem)
    assert planned.errors == {}
    assert planned.notes == []
    assert len(planned.configs) >= 5
    for config in planned.configs.values():
        assert overrides.find_errors(config) == []
        assert config.train.batch_size % 8 == 0


def test_a_manifest_is_written_with_the_command_that_applies_it(base, tmp_path, capsys):
    assert run(tmp_path, [{"seed": 1}, {"seed": 2}], base, "--backend=kubernetes") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"kubectl apply -f {tmp_path}/out/job.yaml"
    assert len(read_sweep(tmp_path / "out").trials) == 2
    assert "--output=/runs/out" in (tmp_path / "out" / "job.yaml").read_text()


def test_another_sweep_in_the_same_folder_is_refused(base, tmp_path, capsys):
    assert run(tmp_path, [{"seed": 1}], base, "--backend=kubernetes") == 0
    with pytest.raises(SystemExit):
        run(tmp_path, [{"seed": 2}], base, "--backend=kubernetes")
    assert "trial 0 was seed=1 and is now seed=2" in capsys.readouterr().err
