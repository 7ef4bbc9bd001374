import json

from configs import base
from groupvit_jax.runs.starts import git_state, write_start


def test_each_start_is_recorded_with_versions_and_git_state(tmp_path):
    for step in (0, 7):
        write_start(base.get_config().to_dict(), tmp_path, step, argv=["launch.train", "--x"])
    starts = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    assert [start["step"] for start in starts] == [0, 7]
    assert starts[0]["argv"] == ["launch.train", "--x"]
    assert starts[0]["versions"]["jax"]
    assert starts[0]["devices"].startswith("8 x")
    assert set(starts[0]["git"] or {"commit", "modified"}) == {"commit", "modified"}


def test_the_note_says_how_to_repeat_the_run(tmp_path):
    write_start(base.get_config().to_dict(), tmp_path, 0)
    command = (tmp_path / "REPEAT.txt").read_text()
    assert f"python -m launch.train --config={tmp_path}/config.json" in command


def test_git_state_outside_a_checkout_is_none(tmp_path):
    assert git_state(tmp_path) is None
