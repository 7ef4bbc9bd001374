import json

import pytest

from configs import base
from groupvit_jax.runs import run_folder


def test_the_written_configuration_reads_back_the_same(tmp_path):
    config = base.get_config()
    run_folder.write_start(config, tmp_path, 0)
    read = run_folder.config_from_json(tmp_path / "config.json")
    assert read.to_dict() == config.to_dict()


def test_each_start_is_recorded_with_versions_and_git_state(tmp_path):
    for step in (0, 7):
        run_folder.write_start(base.get_config(), tmp_path, step, argv=["launch.train", "--x"])
    starts = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    assert [start["step"] for start in starts] == [0, 7]
    assert starts[0]["argv"] == ["launch.train", "--x"]
    assert starts[0]["versions"]["jax"]
    assert starts[0]["devices"].startswith("8 x")
    assert set(starts[0]["git"] or {"commit", "modified"}) == {"commit", "modified"}


def test_the_note_says_how_to_repeat_the_run(tmp_path):
    run_folder.write_start(base.get_config(), tmp_path, 0)
    command = (tmp_path / "REPEAT.txt").read_text()
    assert f"python -m launch.train --config={tmp_path}/config.json" in command


def test_git_state_outside_a_checkout_is_none(tmp_path):
    assert run_folder.git_state(tmp_path) is None


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_file_that_is_no_configuration_is_a_clear_error(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"config\.json: .*expected a"):
        run_folder.config_from_json(path)


def test_a_workdir_below_a_file_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match=r"--workdir=.*/file/run: not writable \(Not a directory\)"
    ):
        run_folder.check_writable(tmp_path / "file" / "run")


def test_a_writable_workdir_is_left_empty(tmp_path):
    run_folder.check_writable(tmp_path / "new" / "run")
    assert list((tmp_path / "new" / "run").iterdir()) == []


def test_another_model_is_refused_only_where_there_is_a_checkpoint(tmp_path):
    config = base.get_config()
    run_folder.write_start(config, tmp_path, 0)
    config.model.image.num_heads = 8
    with pytest.raises(ValueError, match=r"another model \(config.model.image.num_heads: 6 -> 8\)"):
        run_folder.check_same_run(config, tmp_path, resuming=True)
    run_folder.check_same_run(config, tmp_path, resuming=False)


def test_other_differences_are_logged_and_the_run_goes_on(tmp_path, caplog):
    config = base.get_config()
    run_folder.write_start(config, tmp_path, 0)
    config.optimizer.weight_decay = 0.1
    run_folder.check_same_run(config, tmp_path, resuming=True)
    assert [record.message for record in caplog.records] == [
        f"the configuration of {tmp_path} changes: config.optimizer.weight_decay: 0.05 -> 0.1"
    ]


def test_fields_that_came_after_the_run_began_are_no_other_model(tmp_path):
    recorded = base.get_config()
    del recorded.model.text["kind"]
    run_folder.write_start(recorded, tmp_path, 0)
    run_folder.check_same_run(base.get_config(), tmp_path, resuming=True)
