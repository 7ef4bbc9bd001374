import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from groupvit_jax.scenes import dataset
from groupvit_jax.segmenter import Segmenter
from groupvit_jax.serve.page import Page, default_vocabulary, split_labels
from groupvit_jax.serve.photos import Limits, data_url
from tests.data.image_files import encode, photo
from tests.serve import models
from tests.serve.models import LABELS

VOCABULARY = ("dog", "sea", "sand")


@pytest.fixture(scope="module")
def page():
    return Page(models.segmenter(), vocabulary=VOCABULARY, labels=LABELS)


def pixels(url):
    head, _, content = url.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def upload(page, *images, labels=LABELS, background=False, threshold=0.5):
    files = [
        {"name": f"{i}.png", "data": data_url(encode(image, "PNG"))}
        for i, image in enumerate(images)
    ]
    return list(page.upload(files, list(labels), background, threshold))


def test_a_photo_is_shown_at_once_and_then_segmented(page):
    image = photo(60, 80)
    first, last = upload(page, image)
    assert first["busy"]
    assert first["items"][0]["result"] is None
    assert not last["busy"]
    assert last["messages"] == []
    found, expected = last["items"][0]["result"], page.segmenter(image, LABELS)
    np.testing.assert_array_equal(pixels(found["mask"]), expected.mask)
    np.testing.assert_array_equal(pixels(found["download"]), expected.mask)
    for stage, groups in zip(found["groups"], expected.groups, strict=True):
        np.testing.assert_array_equal(pixels(stage["map"]), groups)
        assert stage["count"] == len(np.unique(groups))
    assert [label["name"] for label in found["labels"]] == list(LABELS)
    assert sum(label["share"] for label in found["labels"]) == pytest.approx(1, abs=1e-4)
    for label in found["labels"]:
        score = expected.score(label["name"])
        assert label["peak"] == pytest.approx(score.max(), abs=1e-4)
        assert np.abs(pixels(label["score"]) / 255 * label["peak"] - score).max() < 0.01
    json.dumps(last)


def test_segments_are_named_by_vocabulary_and_labels(page):
    result = page.segmenter(photo(60, 80), LABELS)
    both = dict.fromkeys((*VOCABULARY, *LABELS))
    expected = page.segmenter.name_groups(result, tuple(both))
    found = upload(page, photo(60, 80))[-1]["items"][0]["result"]["names"]
    assert len(found) == 4
    for mine, theirs in zip(found, expected, strict=True):
        assert [name for name, _ in mine] == [name for name, _ in theirs]


def test_the_mask_to_download_has_the_size_of_the_upload():
    page = Page(models.segmenter(), vocabulary=VOCABULARY, limits=Limits(side=40))
    found = upload(page, photo(60, 80))[-1]["items"][0]["result"]
    assert pixels(found["mask"]).shape == (30, 40)
    assert pixels(found["download"]).shape == (60, 80)


def test_a_background_is_a_label_of_its_own(page):
    found = upload(page, photo(60, 80), background=True, threshold=0.6)[-1]["items"][0]["result"]
    assert [label["background"] for label in found["labels"]] == [True, False, False, False]
    expected = page.segmenter.with_background(0.6)(photo(60, 80), LABELS)
    np.testing.assert_array_equal(pixels(found["mask"]), expected.mask)


def test_broken_photos_are_named_and_the_others_segmented(page):
    good = {"name": "good.png", "data": data_url(encode(photo(40, 60), "PNG"))}
    bad = {"name": "bad.png", "data": data_url(b"no image")}
    last = list(page.upload([bad, good, bad], list(LABELS), False, 0.5))[-1]
    assert [item["photo"]["name"] for item in last["items"]] == ["good.png"]
    assert [text[:29] for text in last["messages"]] == ["bad.png: unknown image format"] * 2


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "labels: an empty list found, expected at least one label"),
        (["dog", "Dog"], "labels: 'Dog' found twice"),
        (["x" * 200], "labels: 'xxxxxxxxxxxxxxxxxxxx'... has 200 characters"),
        ([f"thing {i}" for i in range(200)], "labels: 200 found, expected at most 100"),
    ],
)
def test_wrong_labels_are_told_and_the_photo_stays(page, labels, message):
    (only,) = upload(page, photo(40, 60), labels=labels)
    assert only["messages"][0].startswith(message)
    assert len(only["items"]) == 1
    assert not only["busy"]


def test_other_labels_for_the_photos_of_the_page(page):
    records = [item["photo"] for item in upload(page, photo(40, 60), photo(60, 40, 1))[-1]["items"]]
    views = list(page.again(records, ["cat, sofa"], False, 0.5))
    assert [sum(item["result"] is not None for item in view["items"]) for view in views] == [
        0,
        1,
        2,
    ]
    names = [label["name"] for label in views[-1]["items"][1]["result"]["labels"]]
    assert names == ["cat", "sofa"]
    assert list(page.again(None, ["cat"], False, 0.5))[-1]["items"] == []
    assert list(page.again([{"name": "x"}], ["cat"], False, 0.5))[-1]["messages"]


def test_too_many_photos_are_told(page):
    small = Page(page.segmenter, vocabulary=VOCABULARY, limits=Limits(photos=1))
    last = upload(small, photo(20, 20), photo(20, 20, 1))[-1]
    assert last["messages"] == ["2 photos found, expected at most 1 at once"]
    assert len(last["items"]) == 1


def test_examples_are_the_scenes(page):
    view = list(page.example(2, list(LABELS), False, 0.5))[-1]
    scene = dataset.make_example(dataset.SceneConfig(name="x", size=256), "test", 2)
    assert view["items"][0]["photo"]["name"] == scene[2]
    np.testing.assert_array_equal(pixels(view["items"][0]["photo"]["url"]), scene[1].image)


def test_a_segment_head_has_its_own_labels():
    page = Page(Segmenter(models.with_head()), vocabulary=VOCABULARY)
    assert page.has_head
    found = upload(page, photo(60, 80), labels=[], background=True)[-1]
    assert found["messages"] == []
    labels = found["items"][0]["result"]["labels"]
    assert [label["name"] for label in labels] == ["background", "cat", "mat"]
    assert labels[0]["background"]
    names = found["items"][0]["result"]["names"]
    assert {name for of_group in names for name, _ in of_group} == {"background", "cat", "mat"}
    assert sum(value for _, value in names[0]) == pytest.approx(1, abs=1e-3)


def test_the_vocabulary_has_a_few_hundred_different_names():
    names = default_vocabulary()
    assert 250 < len(names) == len({name.casefold() for name in names}) < 500
    assert {"heart", "dog", "sky", "windowpane"} <= set(names)


def test_commas_and_lines_separate_labels():
    assert split_labels(["dog, big tree", "sky", " ", "a\nb,"]) == [
        "dog", "big tree", "sky", "a", "b",
    ]  # fmt: skip
