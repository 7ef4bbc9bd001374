import jax.numpy as jnp
import numpy as np
import pytest

from groupvit_jax.eval import metrics


def count(truth, prediction, num_classes):
    matrix = np.zeros((num_classes, num_classes), int)
    for t, p in zip(truth.ravel(), prediction.ravel(), strict=True):
        if t < num_classes:
            matrix[t, p] += 1
    return matrix


def test_confusion_matrix_counts_pixels_of_examples_only():
    rng = np.random.default_rng(0)
    truth = rng.choice([0, 1, 2, 3, 7, 255], (5, 6, 4))  # 7 is no class, 255 is ignored
    prediction = rng.integers(0, 4, (5, 6, 4))
    present = np.array([True, True, False, True, False])
    found = metrics.confusion_matrix(
        jnp.asarray(truth, jnp.uint8), jnp.asarray(prediction), jnp.asarray(present), 4
    )
    np.testing.assert_array_equal(found, count(truth[present], prediction[present], 4))


def test_confusion_matrix_ignores_an_id_among_the_classes():
    truth, prediction = jnp.array([[0, 1, 1]]), jnp.array([[0, 1, 0]])
    found = metrics.confusion_matrix(truth, prediction, jnp.array([True]), 2, ignored=1)
    np.testing.assert_array_equal(found, [[1, 0], [0, 0]])


def test_scores_of_a_confusion_matrix():
    confusion = np.array([[3, 1, 0], [2, 4, 0], [0, 0, 0]])
    np.testing.assert_allclose(metrics.class_iou(confusion), [3 / 6, 4 / 7, np.nan])
    assert metrics.mean_iou(confusion) == pytest.approx((3 / 6 + 4 / 7) / 2)
    assert metrics.pixel_accuracy(confusion) == pytest.approx(0.7)


def test_class_that_is_only_predicted_has_no_overlap():
    np.testing.assert_allclose(metrics.class_iou(np.array([[2, 1], [0, 0]])), [2 / 3, 0])


def test_empty_confusion_matrix_has_no_scores():
    nothing = np.zeros((3, 3), int)
    assert np.isnan(metrics.mean_iou(nothing))
    assert np.isnan(metrics.pixel_accuracy(nothing))


def test_rank_counts_better_classes_and_breaks_ties_by_order():
    scores = jnp.array([[0.1, 0.9, 0.5], [0.7, 0.7, 0.7], [0.7, 0.7, 0.7]])
    ranks = metrics.rank_of_true_class(scores, jnp.array([2, 0, 2]))
    np.testing.assert_array_equal(ranks, [1, 0, 2])


def test_equal_scores_are_worth_chance():
    ranks = metrics.rank_of_true_class(jnp.zeros((10, 10)), jnp.arange(10))
    assert metrics.recall(np.asarray(ranks), 1) == 0.1
    assert metrics.recall(np.asarray(ranks), 5) == 0.5


def test_first_match_is_the_best_of_several():
    scores = jnp.array([[0.9, 0.2, 0.8, 0.7], [0.9, 0.2, 0.8, 0.7]])
    ranks = metrics.first_match_rank(scores, jnp.array([5, 6]), jnp.array([6, 5, 6, 5]))
    np.testing.assert_array_equal(ranks, [2, 0])
