import csv
import io
import json
import math

import pytest

from groupvit_jax.compare import outputs
from groupvit_jax.compare.groups import compare
from tests.compare.folders import MIOU, compared, run


@pytest.fixture
def comparison():
    runs = [
        run({"a.kind": kind, "b": b}, 0.3 + 0.1 * b + 0.01 * seed, seed, name=f"{kind}-{b}-{seed}")
        for kind in ("x|y", "z") for b in (0, 1) for seed in (0, 1)
    ]  # fmt: skip
    failed = run({"a.kind": "z", "b": 1}, 0.25, 2, state="failed", name="broken")
    return compare([*runs, failed._replace(remark="exit status 1")], MIOU)


def test_the_groups_come_first_and_the_others_after_them(comparison):
    header, rows = outputs.group_table(comparison)
    assert header == [
        "", "kind", "b", "validation/miou %", "n", "behind first", "p", "best", "at step", "state"
    ]  # fmt: skip
    assert rows[0] == ["1", "x|y", "1", "40.5 ± 0.7", "2", "", "", "41.0", "10", "finished"]
    assert rows[2][5] == "10.0"
    assert float(rows[2][6].lstrip("<")) < 0.05
    assert rows[-1] == [
        "broken", "z", "1", "25.0", "", "", "", "25.0", "10", "failed (exit status 1)"
    ]  # fmt: skip
    assert len(rows) == 5


def test_without_others_there_is_no_state():
    header, rows = outputs.group_table(compared({0.0: [0.1], 1.0: [0.2]}))
    assert "state" not in header
    assert {len(row) for row in rows} == {len(header)}


def test_every_run_is_in_its_table_in_order(comparison):
    header, rows = outputs.run_table(comparison)
    assert [row[0] for row in rows] == [
        "x|y-1-0", "x|y-1-1", "z-1-0", "z-1-1", "x|y-0-0", "x|y-0-1", "z-0-0", "z-0-1", "broken"
    ]  # fmt: skip
    assert dict(zip(header[:5], rows[1], strict=False)) == {
        "run": "x|y-1-1", "kind": "x|y", "b": "1", "seed": "1", "last": "41.0"
    }  # fmt: skip


def test_a_finished_run_without_the_metric_says_so():
    without = run({"a": 2}, 0.2)._replace(records=[{"step": 10, "loss": 1.0}])
    broken = run({"a": 3}, math.nan)
    states = [row[-1] for row in outputs.run_table(compare([without, broken], MIOU))[1]]
    assert states == ["finished (no validation/miou)", "finished (validation/miou not finite)"]


def test_markdown_has_the_verdict_and_tables_with_equal_rows(comparison):
    text = outputs.markdown(comparison)
    assert text.startswith("**A tie: `kind=x|y, b=1`")
    assert "1 of 9 runs are not compared: 1 failed." in text
    assert "Main effects" in text
    for block in text.split("\n\n"):
        if block.startswith("| "):
            columns = {line.replace("\\|", "").count("|") for line in block.splitlines()}
            assert len(columns) == 1, block


def test_csv_has_a_row_for_each_run_with_figures_in_full(comparison):
    rows = list(csv.DictReader(io.StringIO(outputs.csv_text(comparison))))
    assert len(rows) == 9
    assert rows[0]["a.kind"] == "x|y"
    assert float(rows[1]["last"]) == 0.3 + 0.1 + 0.01
    assert (rows[0]["rank"], rows[0]["group_n"]) == ("1", "2")
    assert float(rows[0]["group_mean"]) == pytest.approx(0.405)
    assert (rows[-1]["state"], rows[-1]["rank"]) == ("failed", "")


def test_json_holds_all_and_no_nan(comparison):
    def fail(constant):
        raise AssertionError(constant)

    found = json.loads(outputs.json_text(comparison), parse_constant=fail)
    assert (found["metric"], found["mode"], found["by"]) == ("validation/miou", "max", "last")
    assert found["settings"] == ["a.kind", "b"]
    first = found["groups"][0]
    assert first["settings"] == {"a.kind": "x|y", "b": "1"}
    assert (first["n"], first["behind_first"]["p"]) == (2, None)
    assert [run["seed"] for run in first["runs"]] == ["0", "1"]
    assert found["others"][0]["state"] == "failed"
    assert found["main_effects"]["b"]["range"] == pytest.approx(0.1)
    assert found["verdict"]["kind"] == "maybe noise"
