import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from groupvit_jax.data.eval_sets import ProbeSet, open_benchmark
from groupvit_jax.data.sources.labelled import ImageFolder, LabelledFiles
from groupvit_jax.eval import probe
from groupvit_jax.eval.encoding import ImageTower
from groupvit_jax.eval.probe import Embedded, LinearModel, LinearProbe, NearestNeighbours
from groupvit_jax.models.preprocess import normalize
from tests.eval.conftest import make_mesh

NUM_CLASSES, WIDTH = 4, 6
NOTHING = LabelledFiles([], [], [])


def drawn(count, seed, spread=1.0):
    """Embeddings around the directions of their classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, NUM_CLASSES, count).astype(np.int32)
    centres = np.random.default_rng(9).normal(size=(NUM_CLASSES, WIDTH))
    features = centres[labels] + spread * rng.normal(size=(count, WIDTH))
    return Embedded(features.astype(np.float32), labels)


def make(kind, model, num_devices=1, train=NOTHING, val=NOTHING, **options):
    tower = ImageTower(model, make_mesh(num_devices))
    return kind(tower, train, val, NUM_CLASSES, **options)


def slow_neighbours(train, val, k, temperature):
    """Classes' votes for each image, one after another, in float64."""
    ranks = []
    for query, truth in zip(val.features.astype(np.float64), val.labels, strict=True):
        features = train.features.astype(np.float64)
        cosines = features @ query / np.linalg.norm(features, axis=1) / np.linalg.norm(query)
        votes = np.zeros(NUM_CLASSES)
        for i in np.argsort(-cosines)[:k]:
            votes[train.labels[i]] += np.exp(cosines[i] / temperature)
        ranks.append((votes > votes[truth]).sum() if votes[truth] else NUM_CLASSES)
    return np.array(ranks)


@pytest.mark.parametrize(("num_devices", "k"), [(1, 20), (8, 20), (8, 3), (1, 1000)])
def test_neighbours_vote_by_their_similarity(model, num_devices, k):
    train, val = drawn(60, 0), drawn(29, 1)
    found = make(NearestNeighbours, model, num_devices, k=k).ranks(train, val)
    expected = slow_neighbours(train, val, k, 0.07)
    np.testing.assert_array_equal(found, expected)
    assert 0.3 < (expected == 0).mean() < 1


def slow_objective(flat, examples, strength):
    """Mean cross-entropy and penalty in float64, and its gradient."""
    kernel, bias = np.split(flat, [WIDTH * NUM_CLASSES])
    kernel = kernel.reshape(WIDTH, NUM_CLASSES)
    features, n = examples.features.astype(np.float64), len(examples.labels)
    logits = features @ kernel + bias
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    value = (
        -np.log(p[np.arange(n), examples.labels]).mean() + strength / (2 * n) * (kernel**2).sum()
    )
    error = (p - np.eye(NUM_CLASSES)[examples.labels]) / n
    gradient = [features.T @ error + strength / n * kernel, error.sum(0)]
    return value, np.concatenate([x.ravel() for x in gradient])


@pytest.mark.parametrize(("num_devices", "rows_at_once"), [(1, 8192), (1, 16), (8, 16)])
def test_objective_and_gradient_are_the_regressions(num_devices, rows_at_once):
    examples, flat = drawn(45, 0), np.random.default_rng(3).normal(size=(WIDTH + 1) * NUM_CLASSES)
    kernel, bias = np.split(flat.astype(np.float32), [WIDTH * NUM_CLASSES])
    model = LinearModel(jnp.asarray(kernel.reshape(WIDTH, -1)), jnp.asarray(bias))
    rows = probe.in_chunks(make_mesh(num_devices), examples, rows_at_once=rows_at_once)
    value, gradient = jax.jit(jax.value_and_grad(probe.objective))(model, rows, 2.5)
    expected, slopes = slow_objective(flat.astype(np.float32).astype(np.float64), examples, 2.5)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    found = np.concatenate([np.ravel(gradient.kernel), gradient.bias])
    np.testing.assert_allclose(found, slopes, atol=1e-6)
    numeric = scipy.optimize.approx_fprime(flat, lambda x: slow_objective(x, examples, 2.5)[0])
    np.testing.assert_allclose(slow_objective(flat, examples, 2.5)[1], numeric, atol=1e-5)


@pytest.mark.parametrize(("num_devices", "strength"), [(1, 1e-2), (8, 1.0), (1, 100.0)])
def test_fit_finds_the_minimum(num_devices, strength):
    examples = drawn(50, 0)
    rows = probe.in_chunks(make_mesh(num_devices), examples)
    fit = functools.partial(probe.fit, num_classes=NUM_CLASSES, max_iterations=1000)
    found = jax.jit(fit)(rows, strength)
    least = scipy.optimize.minimize(
        slow_objective, np.zeros((WIDTH + 1) * NUM_CLASSES), (examples, strength), jac=True,
        options={"gtol": 1e-9},
    )  # fmt: skip
    flat = np.concatenate([np.ravel(found.kernel), found.bias]).astype(np.float64)
    assert slow_objective(flat, examples, strength)[0] == pytest.approx(least.fun, rel=1e-5)
    # The objective is convex: where its gradient is zero is the minimum. Half of the bound is fit's
    # tolerance, the rest float32's roundings.
    assert np.abs(slow_objective(flat, examples, strength)[1]).max() < 2e-5


def test_weight_zero_leaves_rows_out():
    mesh, examples, others = make_mesh(1), drawn(20, 0), drawn(7, 5)
    both = Embedded(*(np.concatenate(pair) for pair in zip(examples, others, strict=True)))
    weight = np.repeat([1, 0], [20, 7]).astype(np.float32)
    model = LinearModel(jnp.ones((WIDTH, NUM_CLASSES)) * 0.3, jnp.arange(4.0))
    values = [
        probe.objective(model, probe.in_chunks(mesh, *given), 1.0)
        for given in ((examples,), (both, weight))
    ]
    assert values[0] == pytest.approx(float(values[1]), rel=1e-6)


def test_sweep_halves_its_steps_round_the_best():
    tried = []

    def score(strength):
        tried.append(np.log10(strength))
        return -abs(np.log10(strength) - 2.4)

    assert np.log10(probe.sweep(score)) == pytest.approx(2.375)
    np.testing.assert_allclose(tried[:7], range(-6, 7, 2))
    np.testing.assert_allclose(tried[7:], [1, 3, 1.5, 2.5, 2.25, 2.75, 2.375, 2.625])


@pytest.mark.parametrize("num_devices", [1, 8])
def test_linear_probe_equals_the_best_regression(model, num_devices):
    train, val = drawn(80, 0), drawn(40, 1)
    evaluator = make(LinearProbe, model, num_devices, strengths=(1.0,))
    ranks = evaluator.ranks(train, val)
    least = scipy.optimize.minimize(
        slow_objective, np.zeros((WIDTH + 1) * NUM_CLASSES), (train, 1.0), jac=True
    )
    kernel, bias = np.split(least.x, [WIDTH * NUM_CLASSES])
    logits = val.features @ kernel.reshape(WIDTH, -1) + bias
    own = logits[np.arange(40), val.labels]
    np.testing.assert_array_equal(ranks, (logits > own[:, None]).sum(1))


def test_too_strong_a_regularisation_is_not_chosen(model):
    evaluator = make(LinearProbe, model, strengths=(1e6, 1.0))
    train = drawn(100, 0, spread=0.3)
    accuracy = (evaluator.ranks(train, drawn(40, 1, spread=0.3)) == 0).mean()
    assert evaluator.chosen_strength == 1.0
    assert accuracy > 0.9


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eleven images to learn from and five to be measured, of three classes; two are broken."""
    root = tmp_path_factory.mktemp("probe") / "image_folder"
    for split, count in (("train", 11), ("val", 5)):
        for i in range(count):
            pixels = np.random.default_rng((i, count)).integers(0, 256, (4, 4, 3), np.uint8)
            path = root / split / ("dog", "cat", "tree")[i % 3] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), pixels.repeat(8, 0).repeat(8, 1))
        (root / split / "cat/broken.png").write_bytes(b"no image")
    return root


@pytest.mark.parametrize(("num_devices", "batch_size"), [(1, 4), (8, 8)])
def test_every_image_is_embedded_once_before_the_projector(
    model, variables, folder, num_devices, batch_size
):
    tower = ImageTower(model, make_mesh(num_devices))
    source = ImageFolder(folder / "train")
    evaluator = probe.Probe(tower, source, source, 3, batch_size=batch_size, resize=32, crop=32)
    found = evaluator.embed(variables, source)

    @jax.jit
    def encode(images):
        return model.apply(variables, normalize(images), method="encode_image")[1].embedding

    names = [source.locate(i) for i in range(12) if "broken" not in source.locate(i)]
    images = np.stack([cv2.imread(name)[..., ::-1] for name in names])
    np.testing.assert_allclose(found.features, encode(images), atol=1e-4)
    assert [source.class_names[i] for i in found.labels] == [n.split("/")[-2] for n in names]


def test_image_folders_two_splits_make_a_probe(model, variables, folder):
    opened = open_benchmark("image_folder_knn", folder.parent)
    assert isinstance(opened, ProbeSet)
    assert (opened.probe, opened.class_names) == ("knn", ("cat", "dog", "tree"))
    options = dict(num_devices=1, resize=32, crop=32, batch_size=4)
    found = make(NearestNeighbours, model, train=opened.train, val=opened.source, **options)(
        variables
    )
    assert (found["images"], found["train_images"]) == (5, 11)
    assert 0 <= found["top1"] <= found["top5"] <= 1


def test_splits_of_other_classes_are_refused(tmp_path):
    for path in ("train/dog/1.png", "val/wolf/1.png"):
        file = tmp_path / "image_folder" / path
        file.parent.mkdir(parents=True)
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"class 'dog' found in one of train and val"):
        open_benchmark("image_folder_linear_probe", tmp_path)


def test_wrong_option_is_an_error(model):
    with pytest.raises(ValueError, match="k=0"):
        make(NearestNeighbours, model, k=0)
