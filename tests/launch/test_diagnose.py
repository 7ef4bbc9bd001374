import cv2
import numpy as np
import pytest

from groupvit_jax.runs import exit_codes
from groupvit_jax.runs.configuration import write_config
from groupvit_jax.train import setup
from groupvit_jax.train.checkpointer import Checkpointer, CheckpointSettings
from launch import diagnose
from tests.compare.folders import config, records, write_run
from tests.launch.test_train import small_config


def run(*arguments):
    return diagnose.main(diagnose.parse_flags(["diagnose", *map(str, arguments)]))


def test_a_page_without_pictures_needs_metrics_alone(tmp_path, capsys):
    found = [{**record, "groups_in_use/stage_0": 1.0} for record in records(0.4)]
    write_run(tmp_path / "a run", config(), found)
    assert run(tmp_path / "a run", "--output", tmp_path / "new" / "page.html") == 0
    page = (tmp_path / "new" / "page.html").read_text()
    for expected in ("The grouping has collapsed", "groups_in_use/stage_0", "--images names some"):
        assert expected in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "signs of trouble: 1" in capsys.readouterr().out


@pytest.mark.slow
def test_the_groups_of_every_kept_step_are_shown(shards, tmp_path):
    parts = setup.build(small_config(shards), tmp_path / "run")
    run_config, folder = parts.config.to_dict(), tmp_path / "run" / "checkpoints"
    checkpoints = Checkpointer(folder, CheckpointSettings(), run_config, parts.vocabulary)
    for step in (3, 6):
        checkpoints.save(step, parts.fresh_state(), {}, {})
    checkpoints.close()
    write_config(run_config, tmp_path / "run")
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 255, (40, 300, 3), np.uint8))
    page = tmp_path / "page.html"
    assert run(tmp_path / "run", "--images", tmp_path / "*.png", "--output", page) == 0
    text = page.read_text()
    assert "<b>step 3</b>" in text
    assert "<b>step 6</b>" in text
    assert text.count("data:image/jpeg") == 2 * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", "--output=a.html"), "nowhere: no such file or folder"),
        (("RUN", "--output=a"), "--output=a: expected the name of a page"),
        (("RUN", "--output=a.html", "--images", "none.jpg"), "none.jpg"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, arguments, message):
    write_run(tmp_path / "run", config(), records(0.4))
    with pytest.raises(SystemExit) as end:
        run(*(str(tmp_path / "run") if a == "RUN" else a for a in arguments))
    assert end.value.code == exit_codes.BAD_INPUT
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
