"""A run goes back to one of its checkpoints."""

import contextlib
import shutil

import pytest

from groupvit_jax.runs import checkpoints
from groupvit_jax.runs.bucket.opening import open_workdir
from tests.train import toy
from tests.train.test_loop import lines


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of 20 steps, with checkpoints of the steps 15 and 20."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    toy.run(workdir, 20, log_every=1)
    return workdir


@pytest.fixture
def workdir(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "a run")


def steps(folder):
    return sorted(path.name for path in folder.iterdir())


def back(workdir, step):
    with contextlib.ExitStack() as stack:
        open_workdir(workdir, stack, step).roll_back()


def test_later_steps_are_set_aside_and_done_again_bit_for_bit(workdir, trained, caplog):
    back(workdir, 15)
    assert steps(workdir / "checkpoints") == ["15", "rolled_back_to_15"]
    assert steps(workdir / "checkpoints" / "rolled_back_to_15") == ["20"]
    assert "going on from step 15" in caplog.text
    assert toy.run(workdir, 20, log_every=1).step == 20
    found, expected = (checkpoints.read_model(w / "checkpoints" / "20") for w in (workdir, trained))
    toy.assert_same(found, expected)
    losses = [[(line["step"], line["loss"]) for line in lines(w)] for w in (workdir, trained)]
    assert losses[0] == losses[1]


def test_metrics_of_later_steps_are_dropped(workdir):
    back(workdir, 15)
    toy.run(workdir, 17, log_every=1)
    assert [line["step"] for line in lines(workdir)] == [*range(1, 18)]


def test_the_same_command_again_changes_nothing(workdir, caplog):
    back(workdir, 15)
    toy.run(workdir, 20)
    back(workdir, 15)
    assert (workdir / "checkpoints" / "20").is_dir()
    assert "was done by an earlier start and isn't repeated" in caplog.text


def test_the_last_step_can_be_named_and_is_done_once_too(workdir):
    back(workdir, 20)
    toy.run(workdir, 25)
    back(workdir, 20)
    assert (workdir / "checkpoints" / "25").is_dir()


def test_a_killed_rollback_is_finished_by_the_next(workdir):
    folder = workdir / "checkpoints"
    (folder / "rolling_back_to_15").mkdir()
    (folder / "20").rename(folder / "rolling_back_to_15" / "20")
    back(workdir, 15)
    assert steps(folder) == ["15", "rolled_back_to_15"]
    assert steps(folder / "rolled_back_to_15") == ["20"]


def test_a_step_that_is_not_there_or_damaged_moves_nothing(workdir):
    with pytest.raises(ValueError, match=r"--restore_step: 3 found, expected a step in .*15, 20"):
        back(workdir, 3)
    next(path for path in (workdir / "checkpoints" / "15").rglob("d/*")).write_bytes(b"")
    with pytest.raises(ValueError, match=r"--restore_step=15: .*expected a whole step"):
        back(workdir, 15)
    assert steps(workdir / "checkpoints") == ["15", "20"]
