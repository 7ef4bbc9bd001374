import pytest

from tests.launch.test_train import launch, lines, outcome, small_config, write


@pytest.mark.slow
def test_a_run_goes_back_with_another_setting(shards, tmp_path):
    config = small_config(shards)
    argument, run = write(config, tmp_path / "c.json"), tmp_path / "run"
    codes = [outcome(launch(argument, f"--workdir={run}"))]
    before = {line["step"]: line["loss"] for line in lines(run)}
    more = "--restore_step=3", "--config.optimizer.learning_rate=0.1"
    codes += [outcome(launch(argument, f"--workdir={run}", *more))]
    assert [code for code, _ in codes] == [0, 0], codes
    after = {line["step"]: line["loss"] for line in lines(run)}
    assert list(after) == [1, 2, 3, 4, 5, 6]
    assert [after[step] == before[step] for step in after] == [True] * 4 + [False] * 2
    code, errors = outcome(launch(argument, f"--workdir={run}", "--restore_step=4"))
    assert code == 2
    assert "--restore_step: 4 found, expected a step in" in errors
