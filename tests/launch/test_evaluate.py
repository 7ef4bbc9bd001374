import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import PIL.Image
import pytest
from absl import flags
from absl.testing import flagsaver

from configs import tiny
from groupvit_jax.data import eval_sets
from groupvit_jax.interop.save import save_pretrained
from groupvit_jax.segmenter import Segmenter
from launch import evaluate
from tests.data.eval_sets import miniatures
from tests.interop import weights
from tests.waiting import PATIENCE

R1 = "image_to_text_r1"
KINDS = {
    "miou": (
        *("voc", "voc20", "context", "context59", "coco_object", "coco_stuff"),
        *("cityscapes", "ade20k", "folder"),
    ),
    "top1": (
        *("imagenet", "imagenet_knn", "imagenet_linear_probe"),
        *("image_folder", "image_folder_knn", "image_folder_linear_probe"),
    ),
    R1: ("coco_retrieval", "flickr30k_retrieval", "flickr8k_retrieval"),
}
DRAWN = (
    "voc", "context", "coco_photos", "coco_maps", "cityscapes", "ade20k", "folder",
    "imagenet_folders", "imagenet_train", "image_folder_splits", "coco_captions", "flickr30k",
    "flickr8k",
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "export"
    save_pretrained(path, weights.random_pretrained(tiny.get_config().model), "safetensors")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    for name in DRAWN:
        getattr(miniatures, name)(path)
    return path


@pytest.fixture
def run(checkpoint, data, capsys):
    """Runs the command in this process; returns exit code and what it printed."""

    def call(output, *arguments):
        argv = ["evaluate", f"--checkpoint={checkpoint}", f"--data_dir={data}"]
        with flagsaver.flagsaver():
            flags.FLAGS([*argv, f"--output={output}", *arguments])
            try:
                code = evaluate.main([])
            except SystemExit as end:
                code = end.code
        return code, "".join(capsys.readouterr())

    return call


def read(output):
    return json.loads((output / "results.json").read_text())


@pytest.mark.slow
def test_every_benchmark_runs_end_to_end(run, tmp_path):
    code, printed = run(tmp_path, f"--benchmarks={','.join(eval_sets.NAMES)}", "--examples=0")
    assert code == 0, printed
    found = read(tmp_path)["benchmarks"]
    assert set(found) == set(eval_sets.NAMES) == {n for names in KINDS.values() for n in names}
    for metric, sets in KINDS.items():
        for name in sets:
            assert 0 <= found[name]["metrics"][metric] <= 1, name
    thresholds = {
        name: found[name]["settings"]["protocol"]["background_threshold"] for name in KINDS["miou"]
    }
    assert [thresholds[n] for n in ("voc", "context", "coco_object")] == [0.95, 0.35, 0.95]
    assert [thresholds[n] for n in ("voc20", "context59", "ade20k")] == [None] * 3


def test_each_kind_of_benchmark_is_in_table_and_report(run, tmp_path):
    flag = "--benchmarks=voc,image_folder,flickr8k_retrieval"
    code, printed = run(tmp_path, flag, "--examples=1")
    assert code == 0, printed
    found = read(tmp_path)["benchmarks"]
    for name, metric in (("voc", "miou"), ("image_folder", "top1"), ("flickr8k_retrieval", R1)):
        assert 0 <= found[name]["metrics"][metric] <= 1
    table = (tmp_path / "results.md").read_text()
    assert table in printed
    row = r"\| voc \| groupvit \| 0.95, window \|  \| 1 \|  \| 2 \| 20[-\d: ]+UTC \| \d+\.\d\d \|"
    assert re.search(row, table)
    report = (tmp_path / "report.html").read_text()
    assert report.count("data:image/jpeg") == 3
    assert "http" not in re.sub(r"http://www.w3.org/\S+", "", report)


def test_results_say_what_was_measured_and_how(run, tmp_path):
    flag = "--benchmarks=voc"
    assert run(tmp_path, flag, "--protocol=tcl", "--stride=16", "--examples=0")[0] == 0
    found = read(tmp_path)
    assert re.fullmatch("[0-9a-f]{64}", found["checkpoint"]["sha256"])
    assert found["environment"]["versions"]["jax"] == jax.__version__
    voc = found["benchmarks"]["voc"]
    protocol = voc["settings"]["protocol"]
    assert (voc["protocol"], protocol["stride"], protocol["background_rule"]) == (
        "tcl",
        16,
        "constant",
    )
    assert len(protocol["prompts"]) == 9
    assert voc["metrics"]["miou"] == pytest.approx(
        sum(voc["classes"].values()) / len(voc["classes"])
    )


def test_what_was_measured_is_kept_and_not_measured_again(run, tmp_path):
    assert run(tmp_path, "--benchmarks=voc20", "--examples=0")[0] == 0
    before = read(tmp_path)["benchmarks"]["voc20"]
    _, printed = run(tmp_path, "--benchmarks=voc20,context59", "--examples=0")
    assert f"voc20: measured before, {before['measured']}, with the same weights, set" in printed
    found = read(tmp_path)["benchmarks"]
    assert found["voc20"] == before
    assert "context59" in found
    _, printed = run(tmp_path, "--benchmarks=voc20", "--num_kept=2", "--examples=0")
    assert "measured before" not in printed


def test_a_broken_set_does_not_take_the_others_along(run, tmp_path):
    root = tmp_path / "broken"
    miniatures.voc(root)
    (root / "VOCdevkit/VOC2012/SegmentationClass/2007_000033.png").write_bytes(b"no png")
    flag = f"--benchmarks=voc={root},ade20k"
    code, printed = run(tmp_path / "out", flag, "--examples=0")
    assert code == 1
    assert "error: voc: " in printed
    assert set(read(tmp_path / "out")["benchmarks"]) == {"ade20k"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmarks=voc2012"], "benchmark 'voc2012' found, expected one of"),
        (["--benchmarks=voc", "--data_dir=/nowhere"], "/nowhere"),
        (["--benchmarks=voc", "--stride=0"], "stride=0: expected at least 1"),
        (["--benchmarks=voc", "--resize=a,b"], "--resize=a,b: expected integers"),
        (["--benchmarks=voc", "--prompts=a photo"], "prompts: 'a photo' found, expected one {}"),
        (["--benchmarks=voc", "--background_threshold=2"], "=2: expected numbers from 0 to 1"),
        (["--benchmarks=voc", "--background_threshold=ade=0.4"], "'ade' is none of --benchmarks"),
        (["--benchmarks=voc", "--predictions=x"], "expected either this or --predictions"),
        ([], "--benchmarks: missing"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_measured(run, tmp_path, arguments, message):
    code, printed = run(tmp_path / "out", *arguments)
    assert code == 2
    assert message in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_sets_of_ones_own_thresholds_and_prompts_get_rows_and_are_never_stale(run, tmp_path):
    for name in ("one/mine", "two/mine"):
        miniatures.folder(tmp_path / name)
        (tmp_path / name / "folder").rename(tmp_path / name / "set")
    one, two = tmp_path / "one/mine/set", tmp_path / "two/mine/set"
    by_class = tmp_path / "prompts.json"
    by_class.write_text(json.dumps({"*": ["a {}."], "Red_Panda": ["a small bear", "a {}"]}))
    sets = f"--benchmarks=folder={one},folder={two},voc20"
    thresholds = "--background_threshold=0.3,0.5,voc20=0.9"
    code, printed = run(tmp_path / "out", sets, thresholds, f"--prompts=@{by_class}")
    assert code == 0, printed
    assert f"{one}: 2 photos, 3 classes" in printed
    assert "voc20: without background; --background_threshold doesn't apply" in printed
    found = read(tmp_path / "out")["benchmarks"]
    assert list(found) == ["set", "set 2", "set 3", "set 4", "voc20"]
    used = [found[row]["settings"].get("protocol")["background_threshold"] for row in found]
    assert used == [0.3, 0.5, 0.3, 0.5, None]
    assert found["set"]["set"]["path"] == str(one)
    report = (tmp_path / "out/report.html").read_text()
    assert "mIoU in per cent by background threshold" in report  # a curve for each set
    for text in (f"set: {one}", "a small bear a {}", "1, 1 classes with their own"):
        assert text in report
        assert text in printed
    # One mask is corrected: only that set is measured again.
    miniatures.write_mask(one / "masks/a.png", [[2, 2, 2], [2, 2, 2]])
    again = (sets, "--background_threshold=0.3", f"--prompts=@{by_class}", "--examples=0")
    code, printed = run(tmp_path / "out", *again)
    assert code == 0, printed
    assert "set: its earlier result is dropped, the set's files have changed" in printed
    assert "set 3: measured before" in printed
    now = read(tmp_path / "out")["benchmarks"]
    assert set(now) == {"set", "set 3", "set 4", "voc20"}
    assert now["set"]["set"]["fingerprint"] != found["set"]["set"]["fingerprint"]


def test_classification_takes_prompts_and_two_lists_are_two_rows(run, tmp_path):
    sets = "--benchmarks=image_folder,flickr8k_retrieval"
    code, printed = run(tmp_path / "out", sets, "--prompts=a {},the {}")
    assert code == 0, printed
    assert "flickr8k_retrieval: no class names are compared; --prompts doesn't apply" in printed
    file = tmp_path / "by class.toml"
    file.write_text('red-panda = ["a small bear"]\n')
    code, printed = run(tmp_path / "out", sets, f"--prompts=@{file}")
    assert code == 0, printed
    found = read(tmp_path / "out")["benchmarks"]
    assert list(found) == ["image_folder", "flickr8k_retrieval", "image_folder 2"]
    assert found["image_folder"]["settings"]["prompts"] == ["a {}", "the {}"]
    own = found["image_folder 2"]["settings"]["prompts"]
    assert (len(own[""]), own["red-panda"]) == (7, ["a small bear"])
    assert "Templates of image_folder 2 for 'red-panda': a small bear" in printed
    file.write_text('red-pands = ["a small bear"]\n')
    code, printed = run(tmp_path / "out", sets, f"--prompts=@{file}")
    assert code == 2
    assert "'red-pands' is none of the 2 names found, the nearest of which is 'red panda" in printed


def test_predictions_become_files_that_give_the_same_figures(run, checkpoint, data, tmp_path):
    flags_ = ("--benchmarks=folder", "--background_threshold=0.4", "--examples=0")
    code, printed = run(tmp_path / "out", *flags_, "--save=masks,scores,groups")
    assert code == 0, printed
    written = tmp_path / "out/folder"
    assert f"folder: masks, scores, groups of 2 photos are in {written}" in printed
    ours = read(tmp_path / "out")["benchmarks"]["folder"]
    result = Segmenter.from_pretrained(checkpoint, background=0.4)(
        data / "folder/images/a.png", ["red panda", "sky"]
    )
    with PIL.Image.open(written / "masks/a.png") as mask:
        assert mask.mode == "P"
        np.testing.assert_array_equal(np.asarray(mask), result.mask)
    scores, groups = (np.load(written / f"{kind}/a.npz") for kind in ("scores", "groups"))
    assert scores["scores"].dtype == np.float16
    np.testing.assert_allclose(scores["scores"], result.scores, atol=1e-3)
    for stage, of_pixel in enumerate(result.groups, 1):
        np.testing.assert_array_equal(groups[f"groups_{stage}"], of_pixel)
    page = (written / "groups.html").read_text()
    for token in np.unique(result.groups[-1]):
        assert re.search(rf"token {token}: [^<]*\ba \(", page)
    with flagsaver.flagsaver():
        theirs = [f"--predictions={written}/masks", f"--data_dir={data}", "--benchmarks=folder"]
        flags.FLAGS(["evaluate", *theirs, f"--output={tmp_path}/theirs"])
        assert evaluate.main([]) == 0
    theirs = read(tmp_path / "theirs")["benchmarks"]["folder"]
    assert theirs["metrics"] == ours["metrics"]
    assert theirs["classes"] == ours["classes"]


def test_an_unreadable_photo_is_named_and_shows_in_the_exit_code(run, tmp_path, caplog):
    miniatures.image_folder(tmp_path)
    broken = tmp_path / "image_folder/red_panda/0.jpg"
    broken.write_bytes(b"\xff\xd8no photo")
    code, printed = run(tmp_path / "out", "--benchmarks=image_folder", f"--data_dir={tmp_path}")
    assert code == 1
    assert "error: image_folder: 1 of 3 images can't be read" in printed
    assert str(broken) in printed + caplog.text
    assert read(tmp_path / "out")["benchmarks"]["image_folder"]["images"] == 2


def test_masks_of_another_model_are_measured_without_a_checkpoint(data, tmp_path, capsys):
    for stem, values in (("a", [[0, 1, 2], [0, 1, 1]]), ("b", [[2] * 3] * 2)):
        miniatures.write_mask(tmp_path / f"theirs/{stem}.png", values)
    arguments = [f"--predictions={tmp_path}/theirs", f"--output={tmp_path}/out"]
    arguments += ["--benchmarks=folder", f"--data_dir={data}"]
    with flagsaver.flagsaver():
        flags.FLAGS(["evaluate", *arguments])
        assert evaluate.main([]) == 0
    found = read(tmp_path / "out")["benchmarks"]["folder"]
    assert (found["metrics"]["miou"], found["protocol"]) == (1.0, "predictions")
    assert "| folder | predictions |" in capsys.readouterr().out


def test_weights_that_are_no_numbers_are_refused(run, tmp_path):
    pretrained = weights.random_pretrained(tiny.get_config().model)
    pretrained.variables["params"]["logit_scale"] = np.float32("nan")
    save_pretrained(tmp_path / "nan", pretrained, "safetensors")
    code, printed = run(tmp_path / "out", "--benchmarks=voc", f"--checkpoint={tmp_path}/nan")
    assert code == 2
    assert "logit_scale: 1 of 1 weights NaN or infinite found" in printed


@pytest.mark.slow
def test_command_takes_every_core_as_a_device(checkpoint, data, tmp_path):
    command = [sys.executable, "-m", "launch.evaluate", f"--checkpoint={checkpoint}"]
    command += ["--benchmarks=voc20", f"--data_dir={data}", f"--output={tmp_path}"]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    subprocess.run(command, env=environment, check=True, timeout=PATIENCE)
    assert read(tmp_path)["environment"]["devices"].startswith(f"{os.cpu_count()} x cpu")
