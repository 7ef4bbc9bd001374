import json
import os
import subprocess
import sys

import cv2
import pytest

from groupvit_jax.scenes import dataset
from launch import demo, demo_report
from tests.devices import xla_flags
from tests.waiting import PATIENCE

ONE_DEVICE = xla_flags(1)


def run(*arguments):
    command = [sys.executable, "-m", "launch.demo", *arguments]
    environment = {**os.environ, "XLA_FLAGS": ONE_DEVICE}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    result = run(f"--workdir={folder}", "--steps=4", "--data=miniature", "--nocontrols")
    assert result.returncode == 0, result.stderr
    assert "Test mIoU" in result.stdout
    return folder


def test_demo_leaves_a_report_a_picture_and_a_checkpoint(workdir):
    report = (workdir / "report.html").read_text()
    expected = (demo_report.UNTRAINED, "Training losses", "segmentation", *dataset.CLASS_NAMES)
    for text in expected:
        assert text in report
    # Scene, groups, segmentation and truth; scene, two models and truth.
    assert report.count("<img") == 4 * demo_report.SHOWN + 4 * demo_report.COMPARED
    assert cv2.imread(str(workdir / "scenes.png")).shape[1] > 3 * 32
    assert (workdir / "run/checkpoints/4").is_dir()
    last = json.loads((workdir / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert {"step", "loss", "validation/miou", "test/miou", "shifted/miou"} <= set(last)


@pytest.mark.slow
def test_demo_run_again_goes_on_with_the_controls(workdir):
    before = (workdir / "run/metrics.jsonl").read_text()
    result = run(f"--workdir={workdir}", "--steps=4", "--data=miniature")
    assert result.returncode == 0, result.stderr
    assert (workdir / "run/metrics.jsonl").read_text() == before
    report = (workdir / "report.html").read_text()
    for text in ("soft groups", "captions of other scenes", "then masks"):
        assert text in report
        assert text in result.stdout
    assert report.count("<img") == 4 * demo_report.SHOWN + 7 * demo_report.COMPARED


def test_demo_without_a_workdir_says_so():
    result = run()
    assert result.returncode == 2
    assert "--workdir" in result.stderr


def test_runs_differ_in_what_is_compared_only(tmp_path):
    builder = dataset.build(str(tmp_path), "miniature")
    captions, soft, exchanged, masks = (
        run.config for run in demo.make_runs(builder, tmp_path, steps=50, seed=3)
    )
    for config in (captions, soft, exchanged, masks):
        assert config.train.num_steps == 50
        assert config.optimizer.warmup_steps == 5
        assert config.seed == 3
        assert config.model.image.image_size == 32
        assert config.data.sources.scenes.data_dir == str(builder.data_dir)
    assert masks.init_from == str(tmp_path / "run")
    soft.model.image.assignment = captions.model.image.assignment
    exchanged.data.sources.scenes.exchange_captions = False
    assert soft == captions
    assert exchanged == captions
