import functools
import io
import json

import numpy as np
import pycocotools.mask
import pytest
import scipy.io

from groupvit_jax.data.eval_sets import SegmentationSet, open_benchmark
from groupvit_jax.data.eval_sets.mask_files import class_names
from groupvit_jax.data.sources.masks import MaskedSource
from tests.data.eval_sets import miniatures

COCO_164K = ("coco_stuff164k/images/val2017", "coco_stuff164k/annotations/val2017")
TRAIN_IDS = functools.partial(miniatures.cityscapes, suffix="labelTrainIds")
STUFF_MASK = [[0, 79, 80, 170, 255, 11]] * 4
OBJECT_MASK = [[1, 80, 0, 0, 0, 12]] * 4
# Name, how it lies on disk, number of classes, whether with background, the first image's mask.
SETS = {
    "voc": ("voc", miniatures.voc, 20, True, [[0, 1, 20], [255, 11, 0]]),
    "voc20": ("voc20", miniatures.voc, 20, False, [[255, 0, 19], [255, 10, 255]]),
    "context": ("context", miniatures.context, 59, True, [[0, 1, 59], [37, 36, 0]]),
    "context59": ("context59", miniatures.context, 59, False, [[255, 0, 58], [36, 35, 255]]),
    # Of the 459: 2 is the aeroplane, 284 the person, 458 wood; the others aren't frequent.
    "context, mat": ("context", miniatures.context_mat, 59, True, [[0, 1, 59], [37, 0, 0]]),
    "context59, mat": (
        "context59",
        miniatures.context_mat,
        59,
        False,
        [[255, 0, 58], [36, 255, 255]],
    ),
    "coco_object": ("coco_object", miniatures.coco_maps, 80, True, OBJECT_MASK),
    "coco_object, instances": (
        "coco_object",
        miniatures.coco_instances,
        80,
        True,
        [[42, 61, 61, 80, 0, 1], [61, 61, 61, 80, 0, 1], *[[61, 61, 61, 0, 0, 1]] * 2],
    ),
    "coco_stuff": ("coco_stuff", miniatures.coco_maps, 171, False, STUFF_MASK),
    "coco_stuff, 164k": (
        "coco_stuff",
        lambda data: miniatures.coco_maps(data, *COCO_164K),
        171,
        False,
        STUFF_MASK,
    ),
    "cityscapes": ("cityscapes", miniatures.cityscapes, 19, False, [[0, 18, 255], [255, 13, 255]]),
    "cityscapes, train ids": ("cityscapes", TRAIN_IDS, 19, False, [[0, 18, 255], [255, 13, 255]]),
    "cityscapes, tfds": (
        "cityscapes",
        miniatures.cityscapes_tfds,
        19,
        False,
        [[0, 18, 255], [255, 13, 255]],
    ),
    "ade20k": ("ade20k", miniatures.ade20k, 150, False, [[255, 0, 149], [12, 127, 255]]),
    "folder": ("folder", miniatures.folder, 2, True, [[0, 1, 2], [255, 1, 1]]),
    "folder, no background": (
        "folder",
        lambda data: miniatures.folder(data, "grass\nred panda\nsky"),
        3,
        False,
        [[0, 1, 2], [255, 1, 1]],
    ),
}


@pytest.mark.parametrize("case", SETS)
def test_set_opens_and_its_ids_become_classes(case, tmp_path):
    name, draw, num_classes, has_background, mask = SETS[case]
    draw(tmp_path)
    opened = open_benchmark(name, tmp_path)
    assert isinstance(opened, SegmentationSet)
    assert isinstance(opened.source, MaskedSource)
    assert len(opened.class_names) == num_classes
    assert opened.has_background == has_background
    assert len(opened.source) == 2
    np.testing.assert_array_equal(opened.source[0].mask, mask)
    for index in range(2):
        image, mask = opened.source[index]
        assert image.shape == (*mask.shape, 3)
        assert set(np.unique(mask)) <= {*range(num_classes + has_background), 255}
        assert opened.source.locate(index).endswith((".jpg", ".png", f"image {index}"))


OWN_FOLDERS = {
    "voc": "VOCdevkit/VOC2012",
    "context59": "VOCdevkit/VOC2010",
    "context, mat": "VOCdevkit/VOC2010",
    "coco_object": "coco",
    "coco_object, instances": "coco",
    "coco_stuff, 164k": "coco_stuff164k",
    "cityscapes": "cityscapes",
    "cityscapes, tfds": "cityscapes/semantic_segmentation/1.0.0",
    "ade20k": "ADEChallengeData2016",
    "folder": "folder",
}


@pytest.mark.parametrize("case", OWN_FOLDERS)
def test_sets_own_folder_works_too(case, tmp_path):
    name, draw, *_ = SETS[case]
    draw(tmp_path)
    assert len(open_benchmark(name, str(tmp_path / OWN_FOLDERS[case])).source) == 2


def test_image_without_instances_is_all_background(tmp_path):
    miniatures.coco_instances(tmp_path)
    np.testing.assert_array_equal(open_benchmark("coco_object", tmp_path).source[1].mask, 0)


@pytest.mark.parametrize("name", sorted({name for name, *_ in SETS.values()}))
def test_missing_set_is_one_line_that_says_what_belongs_where(name, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        open_benchmark(name, tmp_path)
    message = str(error.value)
    assert str(tmp_path) in message
    assert "\n" not in message
    assert name.rstrip("0259").removesuffix("_object").removesuffix("_stuff") in message
    assert ("docs/evaluate.md" if name == "folder" else "docs/benchmarks.md") in message


def test_what_an_incomplete_set_lacks_is_named(tmp_path):
    miniatures.voc(tmp_path)
    root = tmp_path / "VOCdevkit/VOC2012"
    (root / "SegmentationClass").rename(root / "elsewhere")
    with pytest.raises(FileNotFoundError, match=rf"voc: {root}/SegmentationClass not found; exp"):
        open_benchmark("voc20", tmp_path)


def test_class_names_stand_at_their_ids():
    """Some ids, as their sets' own lists have them."""
    expected = {
        "voc": {1: "aeroplane", 11: "table", 15: "person", 16: "plant", 20: "monitor"},
        "context": {1: "aeroplane", 36: "mouse", 37: "person", 59: "wood"},
        "coco_stuff": {1: "person", 80: "toothbrush", 81: "banner", 171: "wood"},
        "cityscapes": {1: "road", 12: "person", 19: "bicycle"},
        "ade20k": {1: "wall", 13: "person", 76: "swivel chair", 128: "bicycle", 150: "flag"},
        "imagenet": {1: "tench", 135: "crane bird", 518: "construction crane"},
    }
    for name, places in expected.items():
        names = class_names(name)
        assert {place: names[place - 1] for place in places} == places


BREAK = {
    "photo is missing": (
        lambda root: (root / "JPEGImages/2007_000033.jpg").unlink(),
        r"JPEGImages/2007_000033.jpg: can't be read \(No such file",
    ),
    "mask is missing": (
        lambda root: (root / "SegmentationClass/2007_000033.png").unlink(),
        r"SegmentationClass/2007_000033.png: can't be read \(No such file",
    ),
    "photo is broken": (
        lambda root: (root / "JPEGImages/2007_000033.jpg").write_bytes(b"no image"),
        r"2007_000033.jpg: unknown image format",
    ),
    "mask is broken": (
        lambda root: (root / "SegmentationClass/2007_000033.png").write_bytes(b"no image"),
        r"2007_000033.png: mask is no readable PNG",
    ),
    "mask is cut off": (
        lambda root: (root / "SegmentationClass/2007_000033.png").write_bytes(
            (root / "SegmentationClass/2007_000033.png").read_bytes()[:-30]
        ),
        r"2007_000033.png: mask is no readable PNG",
    ),
    "other size": (
        lambda root: miniatures.write_mask(root / "SegmentationClass/2007_000033.png", [[0] * 4]),
        r"2007_000033.png: mask of 1 x 4 pixels .* found, expected the photo's 2 x 3",
    ),
    "turned": (
        lambda root: miniatures.write_mask(
            root / "SegmentationClass/2007_000033.png", [[0] * 2] * 3
        ),
        r"2007_000033.png: mask of 3 x 2 pixels .* found, expected the photo's 2 x 3",
    ),
    "unknown id": (
        lambda root: miniatures.write_mask(
            root / "SegmentationClass/2007_000033.png", [[0, 1, 21], [2, 40, 21]]
        ),
        r"2007_000033.png: values \[21, 40\] found in the mask, expected one of 22 from 0 to 255",
    ),
    "colours": (
        lambda root: miniatures.write_photo(root / "SegmentationClass/2007_000033.png"),
        r"2007_000033.png: mask with the channels RGB found, expected one value",
    ),
}


@pytest.mark.parametrize("case", BREAK)
def test_what_is_broken_is_named(case, tmp_path):
    damage, message = BREAK[case]
    miniatures.voc(tmp_path)
    damage(tmp_path / "VOCdevkit/VOC2012")
    source = open_benchmark("voc", tmp_path).source
    with pytest.raises(ValueError, match=message):
        source[0]
    assert source[1].mask.shape == (2, 3)  # the others still work


INSTANCES = {
    "unknown category": (
        miniatures.instance(12, miniatures.rectangle(0, 0, 2, 2)),
        r"values \[12\]",
    ),
    "run lengths of another size": (
        miniatures.instance(1, {"counts": [6], "size": [2, 3]}),
        r"image 139: run lengths of size \[2, 3\] found, expected the photo's \[4, 6\]",
    ),
    "run lengths too long": (
        miniatures.instance(1, {"counts": [0, 10**9], "size": [4, 6]}),
        r"image 139: run lengths of 1000000000 pixels found, expected 4 x 6",
    ),
    "numbers that are none": (
        miniatures.instance(1, [[float("nan")] * 6]),
        r"image 139: segmentation \[\[nan, .* found, expected polygons or run lengths",
    ),
    "garbage": (
        miniatures.instance(1, {"counts": "garbage", "size": [4, 6]}),
        r"image 139: Invalid RLE mask representation",
    ),
    "no shape": (miniatures.instance(1, [[1, 2]]), r"image 139: segmentation \[\[1, 2\]\] found"),
}


@pytest.mark.parametrize("case", INSTANCES)
def test_instance_that_cannot_be_drawn_is_named(case, tmp_path):
    broken, message = INSTANCES[case]
    miniatures.coco_instances(tmp_path, [broken])
    with pytest.raises(ValueError, match=message):
        open_benchmark("coco_object", tmp_path).source[0]


def test_compressed_run_lengths_are_read(tmp_path):
    inside = np.zeros((4, 6), np.uint8, order="F")
    inside[1:3, 2:5] = 1
    encoded = pycocotools.mask.encode(inside)
    shape = {"counts": encoded["counts"].decode(), "size": [4, 6]}
    miniatures.coco_instances(tmp_path, [miniatures.instance(1, shape)])
    found = open_benchmark("coco_object", tmp_path).source[0].mask
    np.testing.assert_array_equal(found, inside)


@pytest.mark.parametrize("content", ["[]", "{", json.dumps({"images": [{"id": 1}]})])
def test_json_that_is_not_cocos_is_named(content, tmp_path):
    miniatures.coco_instances(tmp_path)
    (tmp_path / "coco/annotations/instances_val2017.json").write_text(content)
    with pytest.raises(ValueError, match=r"instances_val2017.json: expected COCO instances"):
        open_benchmark("coco_object", tmp_path)


file = io.BytesIO()
scipy.io.savemat(file, {"other": np.ones(3)})
OTHER_MAT = file.getvalue()


def test_file_name_cannot_point_elsewhere(tmp_path):
    miniatures.coco_instances(tmp_path)
    path = tmp_path / "coco/annotations/instances_val2017.json"
    path.write_text(path.read_text().replace("000000000139.jpg", "../../secret.jpg"))
    with pytest.raises(ValueError, match=r"instances_val2017.json: file name '../../secret.jpg'"):
        open_benchmark("coco_object", tmp_path).source[0]


@pytest.mark.parametrize("content", [b"", b"no matlab" * 30, OTHER_MAT, OTHER_MAT[:-5]])
def test_mat_file_without_a_map_is_named(content, tmp_path):
    miniatures.context_mat(tmp_path)
    (tmp_path / "VOCdevkit/VOC2010/trainval/2008_000002.mat").write_bytes(content)
    with pytest.raises(ValueError, match=r"2008_000002.mat: expected a .mat file with a LabelMap"):
        open_benchmark("context", tmp_path).source[0]


def test_set_without_images_is_an_error(tmp_path):
    miniatures.folder(tmp_path)
    for photo in (tmp_path / "folder/images").iterdir():
        photo.unlink()
    with pytest.raises(FileNotFoundError, match=rf"folder: no image found in {tmp_path}"):
        open_benchmark("folder", tmp_path)


def test_own_set_with_a_class_twice_is_an_error(tmp_path):
    miniatures.folder(tmp_path, "crane\nwall\ncrane")
    with pytest.raises(ValueError, match=r"classes.txt: 'crane' found twice"):
        open_benchmark("folder", tmp_path)


@pytest.mark.parametrize(("names", "found"), [("", 0), ("background", 1)])
def test_own_set_without_classes_is_an_error(names, found, tmp_path):
    miniatures.folder(tmp_path, names)
    with pytest.raises(ValueError, match=rf"classes.txt: {found} names found, expected 1 to 255"):
        open_benchmark("folder", tmp_path)


def test_train_splits_are_read_like_those_that_are_evaluated(tmp_path):
    voc, ade = tmp_path / "VOCdevkit/VOC2012", tmp_path / "ADEChallengeData2016"
    miniatures.voc(tmp_path)
    miniatures.write_text(voc / "ImageSets/Segmentation/train.txt", "2007_000032\n")
    miniatures.write_photo(ade / "images/training/ADE_train_1.jpg")
    miniatures.write_mask(ade / "annotations/training/ADE_train_1.png", [[0, 1, 150]] * 2)
    miniatures.write_photo(tmp_path / "coco/train2017/1.jpg", 0, (4, 6))
    maps = tmp_path / "coco/stuffthingmaps/train2017/1.png"
    miniatures.write_mask(maps, [[0, 89, 91, 181, 255, 12]] * 4)
    expected = {
        "voc": [3, 3, 3],
        "voc20": [2, 2, 2],
        "ade20k": [255, 0, 149],
        "coco_stuff": [0, 79, 80, 170, 255, 11],
        "coco_object": [1, 80, 0, 0, 0, 12],
    }
    for name, row in expected.items():
        opened = open_benchmark(name, tmp_path, "train")
        assert len(opened.source) == 1
        assert opened.source[0].mask[0].tolist() == row
        assert len(opened.all_names) == len(opened.class_names) + opened.has_background


def test_split_that_a_set_lacks_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"benchmark voc: split 'test' found, expected one of"):
        open_benchmark("voc", tmp_path, "test")
