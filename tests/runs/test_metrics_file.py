import json
import os
import subprocess
import sys

import pytest

from groupvit_jax.runs.metrics_file import MetricsFile, read_metrics


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def write(workdir, resume_step, steps):
    file = MetricsFile(workdir, resume_step)
    for step in steps:
        file.write(step, {"loss": 1.0 / step})
    return file


WRITE_AND_DIE = """
import os, sys
from pathlib import Path
from groupvit_jax.runs.metrics_file import MetricsFile
file = MetricsFile(Path(sys.argv[1]), 0)
for step in (1, 2):
    file.write(step, {"loss": 1.0 / step})
os._exit(9)  # neither flushes nor closes
"""


def test_every_line_survives_the_process(tmp_path):
    command = [sys.executable, "-c", WRITE_AND_DIE, str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == 9
    assert lines(tmp_path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]


def test_resuming_drops_the_lines_that_will_be_written_again(tmp_path):
    write(tmp_path, 0, [5, 10, 15, 20])
    write(tmp_path, 10, [15, 20, 25])
    assert [line["step"] for line in lines(tmp_path)] == [5, 10, 15, 20, 25]


def test_resuming_drops_a_line_torn_by_a_kill(tmp_path):
    write(tmp_path, 0, [5, 10])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 15, "lo')
    assert [line["step"] for line in read_metrics(tmp_path)] == [5, 10]
    write(tmp_path, 10, [15])
    assert [line["step"] for line in lines(tmp_path)] == [5, 10, 15]


def test_what_is_not_finite_is_null(tmp_path):
    write(tmp_path, 0, []).write(3, {"miou": float("nan"), "loss": float("inf")})
    assert lines(tmp_path) == [{"step": 3, "miou": None, "loss": None}]


def test_a_file_of_an_earlier_version_is_continued_byte_for_byte(tmp_path):
    old = b'{"step": 5, "loss": 2.5, "val/miou": null}\n{"step": 10, "loss": 2.25}\n'
    (tmp_path / "metrics.jsonl").write_bytes(old)
    MetricsFile(tmp_path, 10).write(15, {"loss": 2.0})
    assert (tmp_path / "metrics.jsonl").read_bytes() == old + b'{"step": 15, "loss": 2.0}\n'
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_without_a_file_there_are_no_lines(tmp_path):
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"loss": 1.0}', '{"step": "5"}'])
def test_a_foreign_line_is_named_by_its_number(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: .*expected"):
        read_metrics(tmp_path)
