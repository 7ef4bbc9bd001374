"""RandAugment beside timm's own, where timm is installed (the rest of it needs torchvision)."""

import importlib.util
import random
from pathlib import Path
from types import ModuleType

import numpy as np
import PIL.Image
import pytest
from scipy import stats

from groupvit_jax.data.images.augment import FILL, rand_augment

COUNT = 3000


@pytest.fixture(scope="module")
def timm_augment() -> ModuleType:
    timm = importlib.util.find_spec("timm")
    if timm is None:
        pytest.skip("timm is not installed")
    file = Path(timm.submodule_search_locations[0], "data", "auto_augment.py")
    spec = importlib.util.spec_from_file_location("timm_auto_augment", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _image() -> np.ndarray:
    y, x = np.mgrid[:48, :48]
    waves = 128 + 60 * np.sin(x / 5) * np.cos(y / 7)
    return np.stack([40 + 2 * x, 60 + 2.5 * y, waves], axis=-1).astype(np.uint8)


def _timms(module: ModuleType, image: np.ndarray) -> np.ndarray:
    random.seed(0)
    np.random.seed(0)
    settings = dict(img_mean=FILL, interpolation=PIL.Image.Resampling.BILINEAR)
    augment = module.rand_augment_transform("rand-m9-mstd0.5-inc1", settings)
    results = []
    while len(results) < COUNT:
        try:
            results.append(np.asarray(augment(PIL.Image.fromarray(image))))
        except ValueError:  # PosterizeIncreasing's 0 bits at level 10, which today's PIL refuses
            continue
    return np.stack(results).astype(int)


def _statistics(results: np.ndarray, image: np.ndarray) -> dict[str, np.ndarray]:
    centre = results[:, 16:32, 16:32]
    return {
        "change": np.abs(results - image).mean(axis=(1, 2, 3)),
        "mean": results.mean(axis=(1, 2, 3)),
        "contrast": results.std(axis=(1, 2, 3)),
        "red against blue": (results[..., 0] - results[..., 2]).mean(axis=(1, 2)),
        "slope to the right": np.diff(centre, axis=2).mean(axis=(1, 2, 3)),
        "slope downwards": np.diff(centre, axis=1).mean(axis=(1, 2, 3)),
    }


def test_outputs_are_distributed_as_timms(timm_augment):
    image, rng = _image(), np.random.default_rng(0)
    ours = np.stack([rand_augment(image, rng) for _ in range(COUNT)]).astype(int)
    timms = _statistics(_timms(timm_augment, image), image)
    unchanged = [(values["change"] == 0).sum() for values in (timms, _statistics(ours, image))]
    assert stats.chi2_contingency([unchanged, [COUNT - n for n in unchanged]]).pvalue > 0.01
    for name, values in _statistics(ours, image).items():
        # Differences of a grey level, which rounding makes, are not the distribution's.
        distance = stats.wasserstein_distance(values, timms[name])
        spread = timms[name].std()
        assert distance < 0.08 * spread, f"{name}: {distance:.3f} of {spread:.3f}"
