import json

import pytest

from groupvit_jax.runs import exit_codes
from launch import plan
from tests.plan.machines import host

TINY = "--config=configs/tiny.py"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v9:2x2"], "--topology=v9:2x2: unknown, expected one of"),
        (["--topology=v5e:2x2", "--num_slices=two"], "--num_slices=two: expected whole numbers"),
        (["--topology=v5e:2x2", "--batch_sizes=0"], "--batch_sizes=0: expected whole numbers"),
        (["--topology=v5e:2x2", "--slices=2"], "--slices=2: unexpected argument"),
        (["--topology=v5e:2x2", "--config.train.batchsize=1"], "config.train.batch_size"),
    ],
)
def test_wrong_flags_are_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        plan.main(["launch.plan", TINY, *arguments])
    assert end.value.code == exit_codes.BAD_INPUT
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


@pytest.fixture
def host_devices(monkeypatch):
    monkeypatch.setattr(
        plan.hardware, "find_topology", lambda name, slices: host(int(name), slices)
    )


def test_compares_and_writes(host_devices, tmp_path, capsys):
    arguments = ["--topology=1,4", "--batch_sizes=16", "--compare", f"--output={tmp_path}"]
    plan.main(["launch.plan", TINY, *arguments])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| topology | chips | batch | fits |")
    found = json.loads((tmp_path / "plan.json").read_text())
    assert [(p["num_chips"], p["batch_size"]) for p in found] == [(1, 16), (4, 16)]
    assert (tmp_path / "plan.md").read_text().startswith("\n".join(lines))
    # The same work an image, on one chip and on four.
    assert found[0]["program"]["flops_per_image"] == pytest.approx(
        found[1]["program"]["flops_per_image"], rel=0.02
    )
    assert found[0]["program"]["collectives"] == []


def test_batch_that_does_not_divide(host_devices, capsys):
    with pytest.raises(SystemExit) as end:
        plan.main(["launch.plan", TINY, "--topology=8", "--batch_sizes=12"])
    assert end.value.code == exit_codes.BAD_INPUT
    assert "batch_size: 12 found, expected a multiple of 8" in capsys.readouterr().err
