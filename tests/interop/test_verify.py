import numpy as np
import pytest

from groupvit_jax.interop import verify


def test_a_difference_is_relative_to_the_largest_value():
    reference = {"a": np.array([[-8.0, 2.0]]), "b": np.array([1.0])}
    outputs = {"a": np.array([[-8.0, 2.5]]), "b": np.array([1.0])}
    first, second = verify.compare(outputs, reference)
    assert (first.name, first.scale, first.absolute, first.relative) == ("a", 8.0, 0.5, 0.0625)
    assert second.relative == 0


def test_another_shape_is_named():
    with pytest.raises(ValueError, match=r"a: shape \(2,\), expected \(3,\)"):
        verify.compare({"a": np.zeros(2)}, {"a": np.zeros(3)})


def test_preprocessing_is_clips(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    transformers = pytest.importorskip("transformers")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 81, 3), np.uint8)
    pillow.fromarray(pixels).save(tmp_path / "image.png")
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    expected = processor(pixels, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    found = verify.clip_preprocess(tmp_path / "image.png", 32)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_random_texts_end_once(small):
    images, tokens = verify.random_inputs(small, batch_size=50)
    assert images.shape == (50, 32, 32, 3)
    assert ((tokens == 511).sum(1) == 1).all()
    assert tokens.max() == 511
