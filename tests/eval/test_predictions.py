import numpy as np
import PIL.Image
import pytest

from groupvit_jax import evaluate
from groupvit_jax.data.eval_sets import SegmentationSet, open_benchmark
from groupvit_jax.eval import metrics
from groupvit_jax.eval.inference import WindowEncoder
from groupvit_jax.eval.predictions import (
    PredictedMasks,
    Predictions,
    labels_of_scores,
    photo_names,
    predictions_of,
)
from groupvit_jax.eval.protocol import Protocol, make_protocol
from groupvit_jax.eval.segment_images import ImageSegmenter
from groupvit_jax.eval.segmentation_evaluator import Segmentation
from tests.data.eval_sets import miniatures
from tests.eval.photos import NAMES, Photos, spread_text, with_highest_scale

PROTOCOL = Protocol(resize=(64, 32), window=32, stride=16, background_threshold=0.3)


@pytest.fixture
def own(tmp_path):
    miniatures.folder(tmp_path)
    return tmp_path / "folder"


def test_labels_of_any_function_give_the_miou_counted_by_hand(own):
    """a.png has [[0, 1, 2], [255, 1, 1]], b.jpg is 2 everywhere."""
    found = evaluate(lambda image: np.ones(image.shape[:2], int), own)
    # Class 1: 3 hits of 5 + 6 pixels predicted so; 0 and 2 occur and are never predicted.
    assert found["miou"] == pytest.approx((0 + 3 / 11 + 0) / 3)
    assert found["pixel_accuracy"] == pytest.approx(3 / 11)
    assert found["iou/red panda"] == pytest.approx(3 / 11)


def test_our_own_masks_give_our_miou_exactly(encoder, variables):
    variables = with_highest_scale(variables)
    text = spread_text(encoder, variables)
    photos = Photos([(32, 32), (40, 32), (20, 90)])
    ours = Segmentation(encoder, photos, NAMES, PROTOCOL)
    ours._encoder = type("Texts", (), {"class_embeddings": lambda *_: text, "model": encoder.model})
    segmenter = ImageSegmenter(WindowEncoder(encoder, PROTOCOL))
    masks = [found.mask for found in segmenter(variables, text, [p.image for p in photos])]
    given = iter(masks)
    theirs = Predictions(photos, ours.all_names, PROTOCOL, lambda image: next(given))
    expected, found = ours.confusion(variables), theirs.confusion()
    np.testing.assert_array_equal(found, expected)
    assert metrics.mean_iou(found) == metrics.mean_iou(expected) > 0


@pytest.mark.parametrize(
    ("protocol", "expected"),
    # Best scores are 0.5, 0.3 and 0.2; the threshold is 0.9, or the image's best if that is lower.
    [("groupvit", [[2, 0, 0]]), ("tcl", [[0, 0, 0]])],
)
def test_background_is_left_to_the_protocols_rule(protocol, expected):
    scores = np.array([[[0.1, 0.3, 0.1]], [[0.5, 0.1, 0.2]]])
    chosen = make_protocol(protocol, has_background=True, background_threshold=0.9)
    np.testing.assert_array_equal(labels_of_scores(scores, (1, 3), chosen, True), expected)


def test_constant_background_wins_up_to_the_threshold():
    scores = np.array([[[0.4, 0.3, 0.1]], [[0.1, 0.1, 0.5]]], np.float32)
    chosen = make_protocol("tcl", has_background=True, background_threshold=0.4)
    assert labels_of_scores(scores, (1, 3), chosen, True).tolist() == [[0, 0, 2]]
    chosen = make_protocol("tcl", has_background=True)
    assert chosen.background_threshold == 0.4


def test_small_scores_are_resized_to_the_photo(own):
    opened = open_benchmark("folder", own)
    scores = np.zeros((3, 1, 1), np.float32)
    scores[2] = 1
    evaluator = predictions_of(opened, "folder", lambda image: scores)
    assert evaluator.confusion()[:, 2].tolist() == [1, 3, 7]
    assert evaluator.confusion().sum() == 11


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (np.ones((2, 2), int), r"a.png: \(2, 2\) found, expected \(2, 3\) pixels"),
        (np.full((2, 3), 3), r"labels 3 to 3 found, expected 0 to 2"),
        (np.ones((2, 3)), r"float64 of shape \(2, 3\) found, expected integers \(2, 3\) or finite"),
        (np.full((3, 2, 3), np.nan), r"expected integers \(2, 3\) or finite scores \[2 or 3, H"),
    ],
)
def test_prediction_that_does_not_fit_is_named(own, prediction, message):
    with pytest.raises(ValueError, match=message):
        evaluate(lambda image: prediction, own)


def test_masks_on_the_disk_are_found_by_the_photos_names(own, tmp_path):
    opened = open_benchmark("folder", own)
    assert isinstance(opened, SegmentationSet)
    assert photo_names(opened.source) == ["a", "b"]
    for name in ("a", "b"):
        miniatures.write_mask(tmp_path / f"out/{name}.png", [[1] * 3] * 2)
    masks = PredictedMasks(tmp_path / "out", opened.source)
    assert predictions_of(opened, "folder", masks).confusion()[:, 1].tolist() == [1, 3, 7]
    PIL.Image.new("L", (5, 5)).save(tmp_path / "out/a.png")
    with pytest.raises(ValueError, match=r"out/a.png: mask of 5 x 5 pixels"):
        predictions_of(opened, "folder", masks).confusion()
    (tmp_path / "out/b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 photos have no mask, the first b.png"):
        PredictedMasks(tmp_path / "out", opened.source)
