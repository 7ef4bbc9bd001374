import pytest

from configs import tiny
from groupvit_jax.data.text.tokenizers import ClipTokenizer
from groupvit_jax.eval.encoding import IMAGENET_PROMPTS
from groupvit_jax.eval.evaluators import benchmark_evaluator, make_evaluators
from groupvit_jax.scenes import dataset
from tests.data.eval_sets import miniatures
from tests.eval.conftest import make_mesh


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    dataset.build(str(folder), dataset.SceneConfig(name="test", size=32, num_train=8, num_eval=8))
    return str(folder / "scenes/test/2.0.0")


def make(model, **entries):
    config = tiny.get_config()
    for name, entry in entries.items():
        config.evaluators[name] = entry
    return make_evaluators(config, model, ClipTokenizer(32), make_mesh(1))


def test_evaluators_of_a_configuration_measure(model, variables, data_dir):
    pairs = dict(kind="tfds", split="test", data_dir=data_dir)
    masks = dict(name="", split="test", data_dir=data_dir)
    made = make(
        model,
        retrieval=dict(kind="retrieval", every_steps=5, source=pairs, resize=32, crop=32),
        masks=dict(
            kind="segmentation",
            source=masks,
            classes=dataset.CLASS_NAMES,
            resize=(),
            window=32,
            stride=32,
        ),
    )
    assert {evaluator.name: every for evaluator, every in made} == {"retrieval": 5, "masks": 0}
    results = {evaluator.name: evaluator(variables) for evaluator, _ in made}
    assert results["retrieval"]["images"] == 8
    assert 0 <= results["masks"]["miou"] <= 1


def test_benchmarks_are_evaluated_while_training(model, variables, tmp_path):
    miniatures.voc(tmp_path)
    options = dict(kind="benchmark", data_dir=str(tmp_path), every_steps=5)
    made = make(model, voc=options, plain=dict(options, benchmark="voc20", stride=16))
    (voc, _), (plain, every_steps) = sorted(made, key=lambda pair: pair[0].name, reverse=True)
    assert (voc.name, plain.name, every_steps) == ("voc", "plain", 5)
    assert (voc.protocol.background_threshold, plain.protocol.stride) == (0.95, 16)
    assert voc.protocol.window == 64  # twice the training's side, as published
    assert 0 <= voc(variables)["miou"] <= 1


def test_prompts_by_class_are_of_classes_that_the_set_has(encoder, tmp_path):
    miniatures.image_folder(tmp_path)
    miniatures.voc(tmp_path)
    given = {"red panda": ["a small bear"]}
    found = benchmark_evaluator(encoder, "image_folder", str(tmp_path), prompts=given)
    assert found.prompts == {"": IMAGENET_PROMPTS, "red panda": ("a small bear",)}
    found = benchmark_evaluator(encoder, "voc", str(tmp_path), prompts={"Table": ["a {}"]})
    assert found.protocol.texts == {"": ("a photo of a {}.",), "Table": ("a {}",)}
    for name, nearest in (("image_folder", "red panda"), ("voc", "train")):
        with pytest.raises(
            ValueError, match=rf"prompts of {name}: 'rad pan' is none of .* is '{nearest}'"
        ):
            benchmark_evaluator(encoder, name, str(tmp_path), prompts={"rad pan": ["a {}"]})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (dict(kind="magic"), r"evaluators\.x\.kind: 'magic'"),
        (dict(kind="benchmark"), r"evaluators\.x: benchmark 'x' found, expected one of"),
        (dict(kind="segmentation", source=dict(name="a", split="b"), classes=("c",)), "data_dir"),
        (
            dict(kind="segmentation", source=dict(name="no", split="b", data_dir="/n")),
            "segmentation set 'no'",
        ),
    ],
)
def test_wrong_entry_is_named(model, entry, message):
    with pytest.raises(ValueError, match=message):
        make(model, x=entry)


def test_unknown_option_is_named(model, tmp_path):
    miniatures.image_folder(tmp_path)
    entry = dict(kind="classification", folder=str(tmp_path / "image_folder"), colour=3)
    with pytest.raises(ValueError, match=r"evaluators\.x.*colour"):
        make(model, x=entry)
