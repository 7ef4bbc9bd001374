import errno
import json
import os
import subprocess
import sys

import pytest

from groupvit_jax.runs.metrics_file import MetricsFile, read_metrics
from groupvit_jax.runs.workdir import WorkdirError


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


def test_resuming_repairs_what_is_no_line_and_says_so(tmp_path, caplog):
    foreign = '{"step": 10, "loss": 0.1}\n\0\xff\n{"step": 12, "lo{"step": 15, "loss": 1}\n[]\n'
    write(tmp_path, 0, [5, 10])
    with (tmp_path / "metrics.jsonl").open("a", encoding="latin-1") as file:
        file.write(foreign)
    MetricsFile(tmp_path, 10)
    assert [line["step"] for line in lines(tmp_path)] == [5, 10]
    for number, what in (
        (3, "a second line of step 10"),
        (4, ""),
        (5, ""),
        (6, "expected an object"),
    ):
        assert any(f"metrics.jsonl:{number}: " in m and what in m for m in caplog.messages), number


class Disk:
    """Takes so many bytes and then none, as a full disk does."""

    def __init__(self, file, free):
        self.file, self.free = file, free

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, content):
        if not self.free:
            raise OSError(errno.ENOSPC, "No space left on device")
        content = content[: self.free]
        self.free -= len(content)
        return self.file.write(content)


@pytest.mark.parametrize("free", [0, 1, 20])
def test_a_line_that_does_not_fit_leaves_the_lines_before_whole(tmp_path, free):
    file = write(tmp_path, 0, [5])
    file._file = Disk(file._file, free)
    with pytest.raises(
        WorkdirError, match=r"metrics of step 10 could not be written \(No space left"
    ):
        file.write(10, {"loss": 1.0})
    assert [line["step"] for line in lines(tmp_path)] == [5]
    file._file.free = 1000
    file.write(10, {"loss": 1.0})
    assert [line["step"] for line in lines(tmp_path)] == [5, 10]


def test_a_short_write_is_completed(tmp_path):
    file = write(tmp_path, 0, [5])
    short = file._file.write
    file._file = Disk(file._file, 1000)
    file._file.write = lambda content: short(content[:3])
    file.write(10, {"loss": 1.0})
    assert [line["step"] for line in lines(tmp_path)] == [5, 10]


def test_a_file_removed_during_the_run_is_an_error(tmp_path):
    file = write(tmp_path, 0, [5])
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(WorkdirError, match="removed during the run"):
        file.write(10, {"loss": 1.0})
