import cv2
import numpy as np
import pytest

from configs import tiny
from groupvit_jax.data.pipeline.segmentation import (
    MaskedAugmentation,
    open_masked_source,
    transform_masked,
)
from groupvit_jax.data.sources.masks import MaskedImage
from groupvit_jax.data.text.tokenizers import ClipTokenizer
from groupvit_jax.scenes import dataset
from groupvit_jax.train.tasks import task_of
from tests.data.eval_sets import miniatures

NAMES = ("background", "red panda", "sky")
PLAIN = dict(min_scale=0.5, max_scale=2.0, flip=0.5, jitter=0.0)


def drawn(height, width, seed=0):
    """Large blocks whose grey value says their class."""
    blocks = np.random.default_rng(seed).integers(0, 5, (-(-height // 16), -(-width // 16)))
    mask = blocks.repeat(16, 0).repeat(16, 1)[:height, :width].astype(np.uint8)
    return MaskedImage(np.repeat(50 * mask[..., None], 3, axis=2), mask)


def transformed(sample, seed=0, size=32, **settings):
    rng = np.random.default_rng(seed)
    augment = MaskedAugmentation(**PLAIN | settings)
    return transform_masked(sample, rng, size=size, augment=augment)


def examples_of(config):
    return task_of(config).make_examples(config, ClipTokenizer())


def config_of(tmp_path, **source):
    config = tiny.get_config()
    config.task = "segmentation"
    config.segmentation.class_names = NAMES
    miniatures.folder(tmp_path)
    source = dict(kind="benchmark", split="val", data_dir=str(tmp_path)) | source
    config.data.sources = dict(folder=source)
    return config


@pytest.mark.parametrize("shape", [(64, 64), (50, 90), (33, 20)])
def test_image_and_mask_stay_on_top_of_each_other(shape):
    for seed in range(8):
        found = transformed(drawn(*shape), seed)
        image, mask = found["image"], found["mask"]
        assert image.shape == (32, 32, 3)
        assert mask.shape == (32, 32)
        inside = mask != 255
        core = cv2.erode(mask, np.ones((5, 5))) == cv2.dilate(mask, np.ones((5, 5)))
        core[[0, 1, -2, -1]], core[:, [0, 1, -2, -1]] = False, False  # beyond, another may begin
        assert (core & inside).sum() > 20
        wrong = np.abs(image[..., 0].astype(int) - 50 * mask.astype(int)) > 2
        assert not wrong[core & inside].any()


def test_what_the_image_lacks_is_mean_grey_and_has_no_class():
    found = transformed(drawn(64, 64), min_scale=0.5, max_scale=0.5, flip=0.0)
    assert (found["mask"][:16, :16] != 255).all()
    assert (found["mask"][16:] == 255).all()
    assert (found["mask"][:, 16:] == 255).all()
    assert (found["image"][16:] == (124, 116, 104)).all()


def test_scale_flip_and_place_vary():
    sample = drawn(64, 64)
    masks = {transformed(sample, seed)["mask"].tobytes() for seed in range(10)}
    assert len(masks) == 10
    whole = dict(min_scale=1.0, max_scale=1.0, size=64)
    assert (transformed(sample, flip=0.0, **whole)["mask"] == sample.mask).all()
    assert (transformed(sample, flip=1.0, **whole)["mask"] == sample.mask[:, ::-1]).all()


def test_colours_change_and_the_mask_does_not():
    same, other = (transformed(drawn(64, 64), 3, jitter=jitter) for jitter in (0.0, 1.0))
    np.testing.assert_array_equal(same["mask"], other["mask"])
    assert np.abs(same["image"].astype(int) - other["image"]).mean() > 3


def test_an_example_is_a_function_of_seed_and_position(tmp_path):
    config = config_of(tmp_path)
    config.model.image.image_size = 8
    first, again = (list(examples_of(config).read(range(6))) for _ in range(2))
    (fourth,) = examples_of(config).read([3])
    for name in ("image", "mask", "index", "broken"):
        for a, b in zip(first, again, strict=True):
            np.testing.assert_array_equal(a[name], b[name])
        np.testing.assert_array_equal(first[3][name], fourth[name])
    config.seed = 1
    (other,) = examples_of(config).read([3])
    assert any((other[name] != fourth[name]).any() for name in ("image", "mask"))
    assert sorted(int(e["index"]) for e in first[:2]) == [0, 1]


def test_a_mask_that_cannot_be_read_is_replaced(tmp_path):
    config = config_of(tmp_path)
    (tmp_path / "folder/masks/a.png").write_bytes(b"no png")
    examples = list(examples_of(config).read(range(4)))
    assert [int(e["broken"]) for e in examples].count(1) == 2
    assert {int(e["index"]) for e in examples} == {1}


def test_scenes_are_read_with_their_masks(tmp_path):
    dataset.build(str(tmp_path), dataset.SceneConfig(name="t", size=32, num_train=4, num_eval=1))
    fields = dict(kind="tfds", data_dir=str(tmp_path / "scenes/t/2.0.0"))
    source = open_masked_source("scenes", fields, dataset.CLASS_NAMES)
    assert len(source) == 4
    with pytest.raises(ValueError, match=r"values \[\d+.* found in the mask, expected one of 3"):
        [open_masked_source("scenes", fields, NAMES[:2])[i] for i in range(4)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(kind="webdataset"), r"sources\.folder\.kind='webdataset': expected one of"),
        (dict(colour=1), r"sources\.folder\.colour: unknown; benchmark has"),
        (dict(split="train"), r"benchmark folder: split 'train' found, expected one of"),
        (dict(benchmark="image_folder", split=""), r"sources\.folder: a set without masks"),
    ],
)
def test_wrong_source_is_named(tmp_path, fields, message):
    miniatures.image_folder(tmp_path)
    with pytest.raises(ValueError, match=message):
        examples_of(config_of(tmp_path, **fields))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (NAMES[:2], "number 2 'sky', but .*class_names has 2, number 2 missing"),
        ((*NAMES, "sea"), "number 3 missing, but .*class_names has 4, number 3 'sea'"),
        (NAMES[1:] + NAMES[:1], "number 0 'background', but .*has 3, number 0 'red panda'"),
    ],
)
def test_classes_are_compared_with_the_sets(tmp_path, names, message):
    config = config_of(tmp_path)
    config.segmentation.class_names = names
    with pytest.raises(ValueError, match=rf"sources.folder: 3 classes found, {message}"):
        examples_of(config)
