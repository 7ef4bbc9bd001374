"""A run with a segment head is evaluated, segments and is exported like one of both towers."""

import json
import shutil

import cv2
import jax
import numpy as np
import onnxruntime
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from configs import tiny
from groupvit_jax import Segmenter
from groupvit_jax.eval.evaluators import make_evaluators
from groupvit_jax.interop import load_pretrained
from groupvit_jax.interop.save import save_pretrained
from groupvit_jax.train.loop import train
from launch import evaluate, export, segment
from tests.data.eval_sets import miniatures
from tests.data.image_files import photo
from tests.interop import weights

pytestmark = pytest.mark.slow

NAMES = ("background", "red panda", "sky")
GREYS = np.array([40, 120, 200], np.uint8)


def blocks(seed, side=48):
    """A photo whose grey values tell the class of each pixel, and its mask."""
    classes = np.random.default_rng(seed).integers(0, 3, (2, 2)).astype(np.uint8)
    mask = classes.repeat(side // 2, 0).repeat(side // 2, 1)
    noise = np.random.default_rng(seed + 100).integers(0, 20, (side, side, 3), np.uint8)
    return GREYS[mask][..., None] + noise, mask


def write_folder(data, count=8):
    root = data / "folder"
    miniatures.write_text(root / "classes.txt", "\n".join(NAMES) + "\n")
    for i in range(count):
        image, mask = blocks(i)
        for name, pixels in (("images", image[..., ::-1]), ("masks", mask)):
            (root / name).mkdir(exist_ok=True)
            cv2.imwrite(str(root / name / f"{i}.png"), pixels)


def run_config(data):
    config = tiny.get_config()
    config.task = "segmentation"
    config.segmentation.update(class_names=NAMES, min_scale=1.0, max_scale=1.3, jitter=0.0)
    config.model.image.update(
        depths=(1, 1), num_group_tokens=(8, 0), num_output_groups=(8,), assignment="soft"
    )
    config.data.sources = dict(folder=dict(kind="benchmark", split="val", data_dir=str(data)))
    config.evaluators.folder = dict(kind="benchmark", data_dir=str(data))
    config.optimizer.update(learning_rate=1e-2, warmup_steps=3)
    config.train.update(num_steps=24, batch_size=8)
    config.checkpoint.every_steps = 24
    config.tensorboard = False
    return config


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_folder(folder)
    miniatures.voc(folder)
    miniatures.image_folder(folder)
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The last step of a run, alone in a folder, and what the run measured itself."""
    folder = tmp_path_factory.mktemp("run")
    train(
        run_config(data),
        folder / "run",
        make_evaluators=lambda p: make_evaluators(p.config, p.model, p.tokenizer, p.mesh),
    )
    last = json.loads((folder / "run/metrics.jsonl").read_text().splitlines()[-1])
    (folder / "alone").mkdir()
    shutil.move(folder / "run/checkpoints/24", folder / "alone/24")
    shutil.rmtree(folder / "run")
    return folder / "alone/24", last


@pytest.fixture(scope="module")
def step(trained):
    return trained[0]


@pytest.fixture(scope="module")
def segmenter(step):
    return Segmenter.from_pretrained(step)


def call_evaluate(step, data, output, *arguments):
    with flagsaver.flagsaver():
        argv = ["evaluate", f"--checkpoint={step}", f"--data_dir={data}", f"--output={output}"]
        flags.FLAGS([*argv, *arguments])
        try:
            return evaluate.main([])
        except SystemExit as end:
            return end.code


def test_the_set_of_its_classes_is_evaluated_as_while_training(trained, data, tmp_path):
    step, last = trained
    assert call_evaluate(step, data, tmp_path, "--benchmarks=folder", "--examples=2") == 0
    found = json.loads((tmp_path / "results.json").read_text())["benchmarks"]["folder"]
    assert found["protocol"] == "segment head"
    assert found["settings"]["protocol"]["window"] == 32
    assert set(found["classes"]) == set(NAMES)
    assert found["metrics"]["miou"] > 0.5  # a third by chance
    for name in ("miou", "pixel_accuracy"):
        assert found["metrics"][name] == pytest.approx(last[f"folder/{name}"], abs=1e-3)
    assert (tmp_path / "report.html").read_text().count("data:image/jpeg") == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmarks=voc"], "voc: 21 classes found, number 1 'aeroplane', but the segment"),
        (["--benchmarks=image_folder"], "image_folder: a set without masks found, expected one"),
        (["--benchmarks=folder", "--protocol=tcl"], "protocol='tcl': no meaning for a segment h"),
        (["--benchmarks=folder", "--prompts=a {}"], "prompts=['a {}']: no meaning for a segment"),
    ],
)
def test_what_a_head_cannot_do_is_one_line(step, data, tmp_path, capsys, arguments, message):
    assert call_evaluate(step, data, tmp_path / "out", *arguments) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_labels_are_the_heads(segmenter):
    image, mask = blocks(3)
    result = segmenter(image)
    assert result.labels == segmenter.class_names == segmenter.mask_labels() == NAMES
    assert result.has_background
    assert (result.mask == mask).mean() > 0.7
    assert [groups.shape for groups in result.groups] == [(48, 48)]
    scores = np.stack([result.score(name) for name in NAMES], axis=-1)
    np.testing.assert_allclose(scores.sum(-1), 1, atol=1e-4)
    np.testing.assert_array_equal(segmenter(image, list(NAMES)).mask, result.mask)
    assert (np.ptp(result.overlay(names=False)[result.mask == 0], axis=-1) == 0).mean() > 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, step: s(photo(8, 8), ["dog"]), r"\['dog'\] found, expected none or \['backg"),
        (lambda s, step: s.batch([], NAMES[1:]), "the segment head of this model knows no others"),
        (lambda s, step: Segmenter.from_pretrained(step, background=True), "background=True: a"),
        (lambda s, step: Segmenter.from_pretrained(step, prompts=["{}"]), "prompts=.*no meaning"),
    ],
)
def test_other_labels_and_options_of_texts_are_refused(segmenter, step, call, message):
    with pytest.raises(ValueError, match=message):
        call(segmenter, step)


def test_other_models_have_no_labels_of_their_own():
    segmenter = Segmenter(weights.random_pretrained(weights.small_config()))
    with pytest.raises(ValueError, match="labels: none found, expected what to look for"):
        segmenter(photo(8, 8))


def call_segment(step, output, *arguments):
    arguments = [*map(str, arguments), f"--checkpoint={step}", f"--output={output}"]
    return segment.main(segment.parse_flags(["segment", *arguments]))


def test_the_command_needs_no_labels(step, segmenter, tmp_path):
    image, _ = blocks(3)
    Image.fromarray(image).save(tmp_path / "a.png")
    assert call_segment(step, tmp_path / "out", tmp_path / "a.png") == 0
    assert json.loads((tmp_path / "out/labels.json").read_text())["labels"] == list(NAMES)
    mask = np.asarray(Image.open(tmp_path / "out/a_mask.png"))
    np.testing.assert_array_equal(mask, segmenter(image).mask)


def test_the_command_refuses_other_labels_before_anything_is_written(step, tmp_path, capsys):
    Image.fromarray(blocks(3)[0]).save(tmp_path / "a.png")
    with pytest.raises(SystemExit) as stopped:
        call_segment(step, tmp_path / "out", tmp_path / "a.png", "--labels=dog,sky")
    assert stopped.value.code == 2
    assert "labels: ['dog', 'sky'] found, expected none or" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def call_export(step, output, kind):
    arguments = [f"--checkpoint={step}", f"--output={output}", f"--format={kind}"]
    return export.main(export.parse_flags(["export", *arguments]))


def test_an_export_gives_the_same_bits_and_segments(step, segmenter, tmp_path):
    call_export(step, tmp_path, "safetensors")
    before, found = load_pretrained(step), load_pretrained(tmp_path / "safetensors")
    assert found.class_names == NAMES
    assert found.model_config == before.model_config
    expected = weights.flat(before)
    assert expected.keys() == weights.flat(found).keys()
    assert all(weights.flat(found)[n].tobytes() == a.tobytes() for n, a in expected.items())
    image, _ = blocks(5)
    again = Segmenter.from_pretrained(tmp_path / "safetensors")(image)
    np.testing.assert_array_equal(again.mask, segmenter(image).mask)


def test_an_export_without_a_class_names_the_tensor(step, tmp_path):
    save_pretrained(tmp_path / "export", load_pretrained(step), "safetensors")
    path = tmp_path / "export/config.json"
    path.write_text(path.read_text().replace('"red panda",', ""))
    with pytest.raises(ValueError, match=r"tensor 'params/segment_head/.*expected \(2,\)|32, 2\)"):
        load_pretrained(tmp_path / "export")


def test_the_program_labels_pixels_as_the_head_does(step, tmp_path):
    call_export(step, tmp_path, "stablehlo")
    folder = tmp_path / "stablehlo"
    assert {path.name for path in folder.iterdir()} == {"image.stablehlo", "config.json"}
    assert json.loads((folder / "config.json").read_text())["class_names"] == list(NAMES)
    image = blocks(3)[0][:32, :32]
    program = jax.export.deserialize(bytearray((folder / "image.stablehlo").read_bytes()))
    found = program.call(image[None])
    whole = Segmenter.from_pretrained(step, resize=(), window=32)
    np.testing.assert_array_equal(found["labels"][0], whole(image).mask)
    assert found["logits"].shape == (1, 8, 3)
    assert [a.shape for a in found["assignments"]] == [(1, 8, 16)]


def test_the_onnx_graph_labels_pixels_as_the_head_does(step, tmp_path):
    call_export(step, tmp_path, "onnx")
    assert {path.name for path in (tmp_path / "onnx").iterdir()} == {"image.onnx", "config.json"}
    image = blocks(3)[0][:32, :32]
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "image.onnx")
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, {"images": image[None]}), strict=True))
    whole = Segmenter.from_pretrained(step, resize=(), window=32)
    np.testing.assert_array_equal(found["labels"][0], whole(image).mask)
    assert found["logits"].shape == (1, 8, 3)


@pytest.mark.parametrize("kind", ["huggingface", "original"])
def test_formats_of_two_towers_refuse_a_head(step, tmp_path, capsys, kind):
    with pytest.raises(SystemExit) as stopped:
        call_export(step, tmp_path / "out", kind)
    assert stopped.value.code == 2
    errors = capsys.readouterr().err
    assert "a segment head of 3 classes found, but a" in errors
    assert "export as safetensors, stablehlo or onnx" in errors
    assert not (tmp_path / "out").exists()
