import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from groupvit_jax.data.text.tokenizers import ClipTokenizer
from groupvit_jax.eval.evaluators import benchmark_evaluator, make_evaluators
from groupvit_jax.eval.head_segmentation import HeadSegmentation, HeadTower
from groupvit_jax.eval.protocol import Protocol
from groupvit_jax.models import build_model
from groupvit_jax.models.preprocess import normalize
from groupvit_jax.models.segmentation import with_segment_head
from tests.data.eval_sets import miniatures
from tests.eval import protocol as slow
from tests.eval.conftest import make_mesh
from tests.eval.photos import NAMES, Photos

PROTOCOL = Protocol(resize=(), window=32, stride=16, partial_patches="pad")  # as `head_protocol`
SIZES = [(32, 32), (40, 32), (20, 50)]


@pytest.fixture(scope="module")
def model():
    return with_segment_head(build_model(tiny.get_config().model), len(NAMES))


@pytest.fixture(scope="module")
def variables(model):
    """Random leaves, and a head that tells the segments of photos apart."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        scale = 3.0 * leaf.shape[0] ** -0.5 if len(leaf.shape) > 1 else 0.3
        value = rng.normal(0, scale, leaf.shape)
        return jnp.float32(
            np.abs(value) + 0.5 if "'scale'" in jax.tree_util.keystr(path) else value
        )

    drawn = jax.tree_util.tree_map_with_path(draw, shapes)
    images = normalize(jnp.stack([image for image, _ in Photos([(32, 32)] * 8)]))
    segments = np.asarray(jax.jit(model.apply)(drawn, images).features.segments).reshape(-1, 32)
    mean = segments.mean(0)
    directions = np.linalg.svd(segments - mean)[2][: len(NAMES) // 2]
    kernel = (
        3 / ((segments - mean) @ directions.T).std() * np.concatenate([directions, -directions]).T
    )
    head = {"classes": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(-mean @ kernel)}}
    return {"params": drawn["params"] | {"segment_head": head}}


def slow_labels(model, variables, image):
    """The mixture's class of every pixel, windows averaged, in float64."""

    @jax.jit
    def encode(window):
        features = model.apply(variables, normalize(window), method=lambda m, x: m.image_encoder(x))
        return features.segments[0], [a[0] for a in features.assignments]

    H, W = image.shape[:2]
    h, w = min(32, H), min(32, W)
    total, count = np.zeros((H, W, len(NAMES))), np.zeros((H, W, 1))
    head = jax.tree.map(np.float64, variables["params"]["segment_head"]["classes"])
    for y in slow.starts(H, h, 16):
        for x in slow.starts(W, w, 16):
            segments, assignments = jax.tree.map(
                np.float64, encode(jnp.asarray(image[None, y : y + h, x : x + w]))
            )
            classes = [slow.softmax(s @ head["kernel"] + head["bias"]) for s in segments]
            rows, columns = -(-h // 8), -(-w // 8)
            of_patch = (assignments[1] @ assignments[0]).T.reshape(rows, columns, -1)
            maps = slow.interpolate(of_patch, rows * 8, columns * 8)[:h, :w]
            total[y : y + h, x : x + w] += maps @ np.array(classes)
            count[y : y + h, x : x + w] += 1
    return (total / count).argmax(-1)


@pytest.mark.parametrize(("num_devices", "windows"), [(1, 3), (8, 8)])
def test_pixels_take_the_likeliest_class_of_the_mixture(model, variables, num_devices, windows):
    tower = HeadTower(model, NAMES, make_mesh(num_devices))
    photos = Photos(SIZES)
    evaluator = HeadSegmentation(tower, photos, PROTOCOL, windows_at_once=windows)
    expected = np.zeros((8, 8), int)
    for image, mask in photos:
        labels = slow_labels(model, variables, image)
        np.add.at(expected, (mask[mask != 255], labels[mask != 255]), 1)
    found = evaluator.confusion(variables)
    assert found.sum() == expected.sum()
    assert np.abs(found - expected).sum() <= 4  # two pixels between two classes
    assert (expected.sum(0) > 0).sum() > 3
    assert {"miou", "pixel_accuracy"} < set(evaluator.scores(found))
    (example,) = evaluator.examples(variables, 1)
    assert (example.prediction == slow_labels(model, variables, photos[0].image)).mean() > 0.99


def make(model, names=NAMES, **entry):
    config = tiny.get_config()
    config.segmentation.class_names = tuple(names)
    config.evaluators.x = entry
    return make_evaluators(config, model, ClipTokenizer(32), make_mesh(1))


def test_a_benchmark_is_evaluated_with_its_background(variables, tmp_path):
    miniatures.folder(tmp_path)
    model = with_segment_head(build_model(tiny.get_config().model), 3)
    entry = dict(kind="benchmark", benchmark="folder", data_dir=str(tmp_path), every_steps=2)
    names = ("background", "red panda", "sky")
    ((evaluator, every_steps),) = make(model, names, **entry)
    assert every_steps == 2
    assert evaluator.all_names == names
    assert evaluator.has_background
    assert (evaluator.protocol.window, evaluator.protocol.stride) == (32, 16)


def test_a_probe_measures_the_tower(model, variables, tmp_path):
    miniatures.image_folder_splits(tmp_path)
    tower = HeadTower(model, NAMES, make_mesh(1))
    found = benchmark_evaluator(tower, "image_folder_knn", str(tmp_path), batch_size=2)(variables)
    assert found["images"] > 0
    assert 0 <= found["top1"] <= found["top5"] <= 1


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            dict(kind="retrieval"),
            r"x\.kind: 'retrieval' found, expected one of \['benchmark', 'seg",
        ),
        (
            dict(kind="benchmark", benchmark="folder"),
            r"x: folder: 3 classes found, number 0 'background', but the segment head has 8, nu",
        ),
        (dict(kind="benchmark", benchmark="image_folder"), r"a set without masks found"),
        (dict(kind="benchmark", benchmark="folder", protocol="tcl"), r"protocol='tcl': no meaning"),
        (dict(kind="benchmark", benchmark="folder", num_kept=3), r"num_kept=3: no meaning for a s"),
        (dict(kind="benchmark", benchmark="folder", window=0), r"x: window=0: expected at least"),
    ],
)
def test_wrong_entry_is_named(model, tmp_path, entry, message):
    miniatures.folder(tmp_path)
    miniatures.image_folder(tmp_path)
    if "benchmark" in entry:
        entry = dict(entry, data_dir=str(tmp_path))
    with pytest.raises(ValueError, match=message):
        make(model, **entry)
