import jax
import numpy as np
import pytest

from groupvit_jax.eval import pamr

refine = jax.jit(pamr.refine, static_argnums=(2, 3))


def slowly(scores, image, num_iterations, dilations):
    """The paper's equations in float64, a pixel at a time."""
    H, W = image.shape[:2]
    scores, image = scores.astype(np.float64), image.astype(np.float64)

    def window(y, x, d):
        return [
            (min(max(y + i * d, 0), H - 1), min(max(x + j * d, 0), W - 1))
            for i in (-1, 0, 1)
            for j in (-1, 0, 1)
        ]

    def weights(y, x):
        values = np.array([image[at] for d in dilations for at in window(y, x, d)])
        sigma = values.std(axis=0, ddof=1)
        near = [at for d in dilations for k, at in enumerate(window(y, x, d)) if k != 4]
        kernel = [-np.mean(np.abs(image[y, x] - image[at]) / (1e-8 + 0.1 * sigma)) for at in near]
        power = np.exp(np.array(kernel) - max(kernel))
        return near, power / power.sum()

    graph = {(y, x): weights(y, x) for y in range(H) for x in range(W)}
    for _ in range(num_iterations):
        old = scores.copy()
        for at, (near, share) in graph.items():
            scores[at] = sum(w * old[other] for w, other in zip(share, near, strict=True))
    return scores


@pytest.mark.parametrize("dilations", [(1,), (1, 2, 4, 12)])
def test_agrees_with_the_equations(dilations):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(2, 9, 7, 3)).astype(np.float32)
    images = rng.integers(0, 256, (2, 9, 7, 3)).astype(np.float32)
    images[1, :5] = 17.0  # no deviation here
    found = refine(scores, images, 3, dilations)
    for i in range(2):
        expected = slowly(scores[i], images[i], 3, dilations)
        np.testing.assert_allclose(found[i], expected, rtol=1e-4, atol=1e-5)


def test_the_scale_of_the_intensities_does_not_matter():
    rng = np.random.default_rng(1)
    scores, images = (rng.uniform(size=(1, 8, 8, n)).astype(np.float32) for n in (2, 3))
    found = [refine(scores, scale * images, 2, (1, 2)) for scale in (1, 255)]
    np.testing.assert_allclose(*found, rtol=1e-4)


def test_a_constant_image_blurs_and_keeps_sums_of_classes():
    scores = np.zeros((1, 65, 65, 2), np.float32)
    scores[0, 32, 32, 0] = 1
    scores[..., 1] = 1 - scores[..., 0]
    found = np.asarray(refine(scores, np.full((1, 65, 65, 3), 90.0, np.float32), 1, (1, 3)))
    assert found[0, 32, 32, 0] == 0  # a pixel is no neighbour of its own
    ring = {
        (d * y, d * x) for d in (1, 3) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)
    }
    for y, x in ring:
        assert found[0, 32 + y, 32 + x, 0] == pytest.approx(1 / 16)
    assert np.count_nonzero(found[..., 0]) == 16
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)


def test_an_edge_stops_scores_and_pulls_wrong_borders_to_it():
    image = np.zeros((1, 40, 40, 3), np.float32)
    image[:, :, 20:] = 200.0
    image += np.random.default_rng(2).normal(0, 2, image.shape)
    scores = np.zeros((1, 40, 40, 2), np.float32)
    scores[:, :, :16, 0] = 1  # four columns short of the edge
    scores[..., 1] = 1 - scores[..., 0]
    found = np.asarray(refine(scores, image.astype(np.float32)))[0].argmax(-1)
    truth = np.arange(40) >= 20
    assert (found == truth).mean() > 0.99
    assert (scores[0].argmax(-1) == truth).mean() == 0.9
