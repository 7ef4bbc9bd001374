import functools

import pytest
import tensorflow_datasets as tfds

from groupvit_jax.data.eval_sets import ClassificationSet, open_benchmark
from groupvit_jax.data.images.decode import decode
from groupvit_jax.data.sources.labelled import LabelledSource
from tests.data.eval_sets import miniatures

UNPACKED = functools.partial(miniatures.imagenet_flat, photos="ILSVRC2012_img_val")
LAYOUTS = {
    "folders": miniatures.imagenet_folders,
    "flat": miniatures.imagenet_flat,
    "as unpacked": UNPACKED,
    "tfds": miniatures.imagenet_tfds,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("own_folder", [False, True])
def test_imagenet_has_its_synsets_order_and_clips_names(layout, own_folder, tmp_path):
    LAYOUTS[layout](tmp_path)
    data_dir = tmp_path / "imagenet" if own_folder and layout != "tfds" else tmp_path
    opened = open_benchmark("imagenet", data_dir)
    assert isinstance(opened, ClassificationSet)
    assert isinstance(opened.source, LabelledSource)
    assert len(opened.class_names) == 1000
    assert [opened.source.label(i) for i in range(3)] == [0, 134, 999]
    names = [opened.source[i]["captions"] for i in range(3)]
    assert names == [["tench"], ["crane bird"], ["toilet paper"]]
    assert decode(opened.source[0]["image"]).shape == (2, 3, 3)
    assert opened.source.locate(0).endswith((".JPEG", "image 0"))


@pytest.mark.parametrize("name", ["val/n99999999/1.JPEG", "val/n01440764x/1.JPEG"])
def test_folder_that_is_no_synset_is_named(name, tmp_path):
    miniatures.imagenet_folders(tmp_path)
    miniatures.write_photo(tmp_path / "imagenet" / name)
    with pytest.raises(ValueError, match=rf"imagenet: '{name.split('/')[1]}' found, expected"):
        open_benchmark("imagenet", tmp_path)


@pytest.mark.parametrize("number", ["00050001", "00000000", "x"])
def test_image_that_is_none_of_the_validations_is_named(number, tmp_path):
    miniatures.imagenet_flat(tmp_path)
    miniatures.write_photo(tmp_path / f"imagenet/val/ILSVRC2012_val_{number}.JPEG")
    with pytest.raises(ValueError, match=rf"imagenet: 'ILSVRC2012_val_{number}.JPEG' found, exp"):
        open_benchmark("imagenet", tmp_path)


def test_another_tfds_set_is_named(tmp_path):
    miniatures.write_tfds(
        tmp_path / "imagenet2012/5.1.0",
        {"image": tfds.features.Image()},
        "validation",
        [{"image": miniatures.png(miniatures.BLACK)}],
    )
    with pytest.raises(ValueError, match=r"5.1.0: expected the TFDS set imagenet2012"):
        open_benchmark("imagenet", tmp_path)


def test_missing_imagenet_is_one_line_that_says_what_belongs_where(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"imagenet: .*/imagenet/val/n0\* not found; .*image-net.org"
    ):
        open_benchmark("imagenet", tmp_path)


@pytest.mark.parametrize("where", ["", "image_folder"])
def test_own_images_have_the_folders_names(where, tmp_path):
    miniatures.image_folder(tmp_path)
    opened = open_benchmark("image_folder", tmp_path / where)
    assert opened.class_names == ("red panda", "tabby cat")
    assert [opened.source.label(i) for i in range(2)] == [0, 1]
    assert opened.source[1]["captions"] == ["tabby cat"]
