import json

import pytest

from groupvit_jax.runs import exit_codes
from launch import compare
from tests.compare.folders import config, records, write_run, write_sweep

VALUES = {
    (weight, 1e-3, seed): 0.3 + 0.1 * weight + 0.004 * seed for weight in (0.0, 1.0)
    for seed in range(3)
}  # fmt: skip


@pytest.fixture
def sweep(tmp_path):
    return write_sweep(tmp_path / "sweep", VALUES)


def run(*arguments):
    return compare.main(compare.parse_flags(["compare", *map(str, arguments)]))


def test_a_sweep_becomes_a_table_a_page_and_a_sentence(sweep, tmp_path, capsys):
    write_run(
        sweep / "006-run", config(0.5), records(0.2)[:2], {"state": "failed", "exit_status": 1}
    )
    output = tmp_path / "new" / "output"
    assert run(sweep, f"--output={output}") == 0
    assert sorted(path.name for path in output.iterdir()) == [
        "comparison.csv", "comparison.html", "comparison.json", "comparison.md"
    ]  # fmt: skip
    printed = capsys.readouterr().out
    for expected in (
        "By the last value of validation/miou (the first figure of the evaluator validation)",
        "40.4 ± 0.4",
        "failed (exit status 1, step 10 of 20)",
        "1 of 7 runs are not compared: 1 failed.",
        "local_weight=1 is first: 40.4 ± 0.4 % (n=3), 10.0 points ahead of the second",
        "not noise",
    ):
        assert expected in printed
        assert expected.split(",")[0].removeprefix("local_weight=1 ") in (
            (output / "comparison.md").read_text()
        )
    found = json.loads((output / "comparison.json").read_text())
    assert [group["settings"] for group in found["groups"]] == [
        {"loss.local_weight": "1"}, {"loss.local_weight": "0"}
    ]  # fmt: skip
    assert "learning_rate" not in (output / "comparison.html").read_text()


def test_metric_mode_and_value_can_be_chosen(sweep, tmp_path, capsys):
    assert run(sweep, f"--output={tmp_path}", "--metric=loss", "--value=best", "--mode=max") == 0
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert (found["metric"], found["mode"], found["by"]) == ("loss", "max", "best")
    assert found["groups"][0]["mean"] == 3.5
    assert "more is better" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metric=validation/mIoU"], "--metric=validation/mIoU: no run has recorded it, the nea"),
        (["nowhere"], "nowhere: no such file or folder, expected the folder of a run"),
    ],
)
def test_wrong_input_is_one_line(sweep, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        run(sweep, f"--output={tmp_path / 'output'}", *arguments)
    assert end.value.code == exit_codes.BAD_INPUT
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "output").exists()


def test_an_output_that_is_a_file_and_runs_without_metrics_are_one_line(sweep, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    empty = write_run(tmp_path / "empty", config(), None)
    for arguments, message in (
        ((sweep, f"--output={tmp_path / 'file'}"), "file: a file found, expected a folder"),
        ((empty, f"--output={tmp_path / 'x'}"), "1 runs: no metrics recorded yet"),
    ):
        with pytest.raises(SystemExit):
            run(*arguments)
        assert message in capsys.readouterr().err
