import logging
import os

import pytest

from groupvit_jax.runs.reading import find_runs, read_runs, shortest_ends
from groupvit_jax.runs.sweep_files import Sweep
from groupvit_jax.runs.sweep_files import write_sweep as write_sweep_file
from tests.compare.folders import config, lines, records, write_run, write_sweep

OVERRIDES = {"loss.local_weight": 2.0, "seed": 1}


def read_one(folder):
    return read_runs([folder])[0]


@pytest.fixture
def sweep(tmp_path):
    return write_sweep(tmp_path / "sweep", {(0.0, 1e-3, 0): 0.3, (1.0, 1e-3, 0): 0.4})


def test_a_run_a_folder_of_runs_and_a_glob_are_found_once_each(sweep, tmp_path):
    (sweep / "no-run").mkdir()
    alone = write_run(tmp_path / "alone", config(), records(0.1))
    patterns = [str(alone), str(sweep), str(sweep / "00*"), f"{tmp_path}/alo*"]
    assert [path.name for path in find_runs(patterns)] == ["alone", "000-run", "001-run"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("nowhere", "nowhere: no such file or folder, expected the folder of a run"),
        ("nowhere-*", "nowhere-*: no such file or folder"),
        ("empty", "empty: no run found, expected the folder of a run (with config.json in it)"),
    ],
)
def test_what_stands_for_no_run_is_an_error(tmp_path, pattern, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="expected the folder of a run") as error:
        find_runs([str(tmp_path / pattern)])
    assert message in str(error.value)


def test_a_finished_run_is_read(sweep):
    run = read_runs(find_runs([str(sweep)]))[1]
    assert (run.name, run.state, run.remark, run.last_step) == ("001-run", "finished", "", 20)
    assert run.config["loss.local_weight"] == 1.0
    assert run.points("validation/miou")[-1] == (20, 0.4)


@pytest.mark.parametrize(
    ("settings", "written", "trial", "expected"),
    [
        (config(), records(0.1)[:2], None, ("stopped", "step 10 of 20")),
        (config(train={"num_steps": None}), records(0.1), None, ("finished", "as far as can be")),
        (config(), None, None, ("pending", "no metrics.jsonl")),
        (config(), records(0.1)[:2], {"state": "running"}, ("running", "step 10 of 20")),
        (
            config(),
            records(0.1)[:1],
            {"state": "failed", "exit_status": 1},
            ("failed", "exit status 1, step 5 of 20"),
        ),
        (None, None, {"state": "pending", "overrides": OVERRIDES}, ("pending", "")),
        (config(), records(0.1), {"state": "finished", "exit_status": 0}, ("finished", "")),
    ],
)
def test_the_state_is_the_sweeps_or_follows_from_the_steps(
    tmp_path, settings, written, trial, expected
):
    run = read_one(write_run(tmp_path / "run", settings, written, trial))
    assert run.state == expected[0]
    assert run.remark.startswith(expected[1])
    assert bool(expected[1]) == bool(run.remark)


def test_settings_of_a_trial_that_has_not_begun_are_its_overrides(tmp_path):
    trial = {"state": "pending", "overrides": OVERRIDES}
    run = read_one(write_run(tmp_path / "run", None, None, trial))
    assert (run.config, run.is_configured) == (OVERRIDES, False)


def test_a_torn_last_line_is_left_out_and_told(tmp_path, caplog):
    folder = write_run(tmp_path / "run", config(), lines(records(0.1)) + '{"step": 25, "lo')
    with caplog.at_level(logging.WARNING):
        run = read_one(folder)
    assert (run.state, run.last_step) == ("finished", 20)
    assert "the last line is torn" in caplog.text


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metrics.jsonl", '{"step": 1}\nnonsense\n', "expected a JSON object on each line"),
        ("metrics.jsonl", '{"step": 1}\n{"loss": 2}\n', "metrics.jsonl:2: "),
        ("config.json", "{", "expected a run's config.json"),
        ("trial.json", "[]", "a JSON list, expected what launch.sweep wrote"),
    ],
)
def test_a_run_with_a_broken_file_is_unreadable_and_says_why(tmp_path, file, content, message):
    folder = write_run(tmp_path / "run", config(), records(0.1))
    (folder / file).write_text(content)
    run = read_one(folder)
    assert run.state == "unreadable"
    assert message in run.remark
    assert file in run.remark


def test_the_sweep_or_the_checkpoints_name_the_metric(tmp_path):
    checkpoint = {"best_metric": "loss", "best_mode": "min"}
    folder = write_run(tmp_path / "run", config(checkpoint=checkpoint), records(0.1))
    assert read_one(folder).wanted == ("loss", "min")
    write_sweep_file(tmp_path, Sweep("s", "c.py", (), "validation/miou", "max", ()))
    assert read_one(folder).wanted == ("validation/miou", "max")


def test_values_that_are_not_finite_are_nan(tmp_path):
    run = read_one(write_run(tmp_path / "run", config(), [{"step": 20, "loss": None}]))
    ((step, value),) = run.points("loss")
    assert step == 20
    assert value != value


def test_runs_of_two_sweeps_are_told_apart_by_name(tmp_path):
    folders = [write_run(tmp_path / s / "000", config(), records(0.1)) for s in ("one", "two")]
    os.symlink(folders[0], tmp_path / "link")
    assert [run.name for run in read_runs(find_runs([str(f) for f in folders]))] == [
        "one/000",
        "two/000",
    ]
    assert len(find_runs([str(folders[0]), str(tmp_path / "link")])) == 1


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.b", "a.c"], ["b", "c"]),
        (["a.kind", "b.kind", "b.x"], ["a.kind", "b.kind", "x"]),
        (["x", "a.x"], ["x", "a.x"]),
        (["weight", "local_weight"], ["weight", "local_weight"]),
    ],
)
def test_names_are_as_short_as_they_can_be_told_apart(names, expected):
    assert shortest_ends(names, ".") == expected
