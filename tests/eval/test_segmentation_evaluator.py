import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from groupvit_jax import parallel
from groupvit_jax.data.sources.labelled import ImageFolder
from groupvit_jax.data.text.tokenizers import ClipTokenizer
from groupvit_jax.eval import metrics, segmentation_evaluator
from groupvit_jax.eval.encoding import Encoder
from groupvit_jax.eval.inference import WindowEncoder
from groupvit_jax.eval.probe import LinearProbe, NearestNeighbours
from groupvit_jax.eval.protocol import Protocol
from groupvit_jax.eval.segment_images import ImageSegmenter
from groupvit_jax.eval.segmentation_evaluator import Segmentation
from groupvit_jax.eval.zero_shot import Classification, Retrieval
from groupvit_jax.report.visualize import png
from tests.bounds import largest_changes, nudged
from tests.devices import xla_flags
from tests.eval.conftest import make_mesh
from tests.eval.photos import NAMES, Photos, spread_text, with_highest_scale
from tests.waiting import PATIENCE

PROTOCOL = Protocol(resize=(64, 32), window=32, stride=16, background_threshold=0.3)
SIZES = [(32, 32), (40, 32), (32, 32), (48, 64), (32, 32), (20, 90)]


class SpreadEncoder(Encoder):
    """Whose classes differ clearly, so that sums in another order turn no pixel."""

    def class_embeddings(self, variables, names, prompts):
        assert (list(names), prompts) == (NAMES, PROTOCOL.prompts)
        return spread_text(self, variables)


def evaluate(model, variables, num_devices, windows=None):
    encoder = SpreadEncoder(model, ClipTokenizer(32), make_mesh(num_devices))
    return Segmentation(encoder, Photos(SIZES), NAMES, PROTOCOL, windows_at_once=windows)


@pytest.fixture(scope="module")
def variables(variables):
    return with_highest_scale(variables)


@pytest.fixture(scope="module")
def expected(encoder, variables):
    """Counted on the host from the masks of single images."""
    photos, total = Photos(SIZES), np.zeros((9, 9), int)
    text = spread_text(encoder, variables)
    segmented = ImageSegmenter(WindowEncoder(encoder, PROTOCOL))(
        variables, text, [p.image for p in photos]
    )
    for (_, mask), found in zip(photos, segmented, strict=True):
        np.add.at(total, (mask[mask != 255], found.mask[mask != 255]), 1)
    return total


@pytest.mark.parametrize(("num_devices", "windows"), [(1, 1), (1, 7), (1, 32), (8, 1), (8, 32)])
def test_every_pixel_counts_once(model, variables, expected, num_devices, windows):
    found = evaluate(model, variables, num_devices, windows).confusion(variables)
    np.testing.assert_array_equal(found, expected)
    assert expected.sum() == sum((mask != 255).sum() for _, mask in Photos(SIZES))
    assert (expected.sum(0) > 0).sum() > 3  # several classes are predicted


def test_counts_leave_the_device_before_they_overflow(model, variables, expected, monkeypatch):
    monkeypatch.setattr(segmentation_evaluator, "_MAX_COUNT", 3000)
    evaluator, told = evaluate(model, variables, 1), []
    np.testing.assert_array_equal(evaluator.confusion(variables, told.append), expected)
    assert told == [1, 2, 3, 4, 5, 6]


def test_reports_each_class_by_name(model, variables, expected):
    scores = evaluate(model, variables, 1).scores(expected)
    assert scores["miou"] == metrics.mean_iou(expected)
    assert {"miou", "pixel_accuracy", "iou/background", "iou/dog"} <= set(scores)


def test_sums_over_processes_are_exact_beyond_int32():
    counts = np.array([2**40 + 3, 0, 5])
    np.testing.assert_array_equal(parallel.sum_over_processes(counts), counts)


def other_results(model, variables, num_devices, folder):
    """Of classification, retrieval and probes on the images that lie in the folder."""
    encoder = Encoder(model, ClipTokenizer(32), make_mesh(num_devices))
    options = dict(batch_size=4, resize=32, crop=32)
    images, others = ImageFolder(folder / "images"), ImageFolder(folder / "others")
    probes = [
        NearestNeighbours(encoder, images, others, 3, k=4, **options),
        # Its collectives wait for whichever process is scheduled last.
        LinearProbe(encoder, images, others, 3, strengths=(1.0,), max_iterations=20, **options),
    ]
    train, test = (probes[0].embed(variables, source) for source in (images, others))
    return {
        "classification": Classification(encoder, images, images.class_names, **options)(variables),
        "retrieval": Retrieval(encoder, images, **options)(variables),
        "embedded": test.features.tolist(),
        "ranks": [probe.ranks(train, test).tolist() for probe in probes],
    }


@pytest.mark.slow
def test_two_processes_count_what_one_counts(model, variables, expected, tmp_path):
    """Each holds two devices and works on some images; both get the results of all."""
    for index, (image, _) in enumerate(Photos([(32, 32)] * 18)):
        folder = "images" if index < 7 else "others"
        path = tmp_path / folder / NAMES[index % 3] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image))
    one = other_results(model, variables, 1, tmp_path)
    # Sixteen units in the last place outweigh rounding: they turn no result, so that none hangs on
    # the order of a sum, and tell how far embeddings of right sums may lie apart.
    embedded, moved = np.array(one.pop("embedded")), []
    for near in (nudged(variables, 16), nudged(variables, -16)):
        found = other_results(model, near, 1, tmp_path)
        moved.append(found.pop("embedded"))
        assert found == one
        np.testing.assert_array_equal(evaluate(model, near, 1).confusion(near), expected)
    bound = largest_changes(embedded, *moved)
    assert bound < 1e-3 * np.abs(embedded).max()
    assert one["classification"]["images"] == 7
    assert list(map(len, one["ranks"])) == [11, 11]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = xla_flags(2)
    command = [sys.executable, "-m", "tests.eval.count_in_two_processes", address]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path)], env=os.environ | {"XLA_FLAGS": flags}
        )
        for rank in (0, 1)
    ]
    assert [process.wait(timeout=PATIENCE) for process in processes] == [0, 0]
    for rank in (0, 1):
        np.testing.assert_array_equal(np.load(tmp_path / f"{rank}.npy"), expected)
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        np.testing.assert_allclose(found.pop("embedded"), embedded, rtol=0, atol=bound)
        assert found == one
