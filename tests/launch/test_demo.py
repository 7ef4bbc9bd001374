import json
import os
import subprocess
import sys

import cv2
import pytest
from PIL import Image

from groupvit_jax.scenes import dataset
from launch.demo import __main__ as demo
from launch.demo import report as demo_report
from launch.demo.pictures import SHOWN
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
def first(tmp_path_factory):
    """The folder of a demo and the result of its process."""
    folder = tmp_path_factory.mktemp("demo")
    result = run(f"--workdir={folder}", "--steps=4", "--data=miniature")
    assert result.returncode == 0, result.stderr
    return folder, result


@pytest.fixture(scope="module")
def workdir(first):
    return first[0]


def test_demo_leaves_a_report_a_picture_and_a_checkpoint(workdir):
    report = (workdir / "report.html").read_text()
    expected = (demo_report.UNTRAINED, "Training losses", "segmentation", *dataset.CLASS_NAMES)
    for text in expected:
        assert text in report
    assert "soft groups" not in report
    assert 'http-equiv="refresh"' not in report
    # Scene, groups, segmentation and truth; scene and two steps; scene, two models and truth.
    assert report.count("<img") == 4 * SHOWN + (3 + 4) * demo_report.COMPARED
    assert cv2.imread(str(workdir / "scenes.png")).shape[1] > 3 * 32
    assert len(list((workdir / "examples").glob("*.png"))) == demo_report.EXAMPLES
    assert (workdir / "run/checkpoints/4").is_dir()
    last = json.loads((workdir / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert {"step", "loss", "validation/miou", "test/miou", "shifted/miou"} <= set(last)


def test_demo_says_what_it_does_and_how_to_go_on(first):
    workdir, result = first
    lines = result.stdout.splitlines()
    assert f"about {demo._MINUTES} min" in lines[0]
    assert any(line.startswith("Open") and "report.html" in line for line in lines[:6])
    assert any("test: mIoU" in line for line in lines)
    commands = [line for line in lines[-3:] if "-m launch." in line]
    assert len(commands) == 3
    assert any(f"launch.serve --checkpoint={workdir}/run" in command for command in commands)


def test_progress_is_readable_without_a_terminal(first):
    _, result = first
    assert "\r" not in result.stdout + result.stderr
    (line,) = (text for text in result.stderr.splitlines() if "validation after step 4" in text)
    assert "miou" in line
    assert "iou/" not in line


def test_the_animation_has_a_frame_for_each_snapshot(workdir):
    with Image.open(workdir / "emerging.webp") as picture:
        assert picture.n_frames == len(list((workdir / "progress").glob("*.npz"))) == 2


def test_the_page_reloads_itself_while_the_model_learns(workdir, tmp_path):
    builder = dataset.make_builder(str(workdir / "data"), "miniature")
    captions = demo.make_runs(builder, workdir, steps=4, seed=0)[0]
    (tmp_path / "progress").symlink_to(workdir / "progress")
    demo_report.announce(tmp_path, "Drawing.")
    before = (tmp_path / "report.html").read_text()
    assert "Drawing." in before
    demo_report.show_progress(tmp_path, captions, step=4)
    page = (tmp_path / "report.html").read_text()
    assert "Step 4 of 4" in page
    assert page.count("<img") == 4 * SHOWN
    assert 'http-equiv="refresh"' in before
    assert 'http-equiv="refresh"' in page


@pytest.mark.slow
def test_demo_run_again_goes_on_with_the_controls(workdir):
    before = (workdir / "run/metrics.jsonl").read_text()
    again = f"--workdir={workdir}", "--steps=4", "--data=miniature"
    result = run(*again, "--controls")
    assert result.returncode == 0, result.stderr
    assert (workdir / "run/metrics.jsonl").read_text() == before
    report = (workdir / "report.html").read_text()
    for text in ("soft groups", "captions of other scenes", "then masks"):
        assert text in report
        assert text in result.stdout
    pictures = 4 * SHOWN + (3 + 7) * demo_report.COMPARED
    assert report.count("<img") == pictures
    assert "launch.compare" in result.stdout
    # What is there stays in the report, whatever is asked for next.
    assert run(*again).returncode == 0
    assert (workdir / "report.html").read_text().count("<img") == pictures


def test_demo_without_a_workdir_says_so():
    result = run()
    assert result.returncode == 2
    assert "--workdir" in result.stderr


def test_runs_differ_in_what_is_compared_only(tmp_path):
    builder = dataset.make_builder(str(tmp_path), "miniature")
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
