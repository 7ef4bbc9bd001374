import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from configs import tiny
from groupvit_jax import Segmenter
from groupvit_jax.eval.encoding import Encoder
from groupvit_jax.eval.protocol import Protocol
from groupvit_jax.interop.save import save_pretrained
from groupvit_jax.segmenter import SegmentationResult
from tests.data.image_files import photo
from tests.interop import weights

LABELS = ["dog", "grass", "frisbee"]


@pytest.fixture(scope="module")
def pretrained():
    """With large weights, so that groups differ."""
    pretrained = weights.random_pretrained(tiny.get_config().model)
    large = jax.tree.map(lambda leaf: 3 * leaf if leaf.ndim == 2 else leaf, pretrained.variables)
    return pretrained._replace(variables=large)


@pytest.fixture(scope="module")
def segmenter(pretrained):
    return Segmenter(pretrained)


@pytest.fixture(scope="module")
def with_background(pretrained):
    return Segmenter(pretrained, background=True)


def test_the_package_stays_light_until_the_class_is_used():
    code = "import sys, groupvit_jax; print('jax' in sys.modules); groupvit_jax.Segmenter"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "False\n"


def test_other_attributes_are_missing_as_usual():
    import groupvit_jax

    with pytest.raises(AttributeError, match="'Segment'"):
        groupvit_jax.Segment  # noqa: B018


def test_the_result_is_as_large_as_the_image(segmenter):
    image = photo(60, 80)
    result = segmenter(image, LABELS)
    np.testing.assert_array_equal(result.image, image)
    assert result.labels == tuple(LABELS)
    assert result.mask.shape == (60, 80)
    assert result.mask.dtype == np.int32
    assert set(np.unique(result.mask)) <= {0, 1, 2}
    assert [len(np.unique(groups)) > 1 for groups in result.groups] == [True, True]
    assert all(groups.max() < most for groups, most in zip(result.groups, (8, 4), strict=True))
    assert all(groups.shape == (60, 80) for groups in result.groups)
    for maps, groups in zip(result.group_maps, result.groups, strict=True):
        np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-5)
        # The likeliest group of each patch is that of the pixels around its centre.
        assert maps.shape[:2] == (8, 8)
        rows, columns = (np.arange(8) * side // 8 + side // 16 for side in groups.shape)
        assert (maps.argmax(-1) == groups[np.ix_(rows, columns)]).mean() > 0.8
    scores = np.stack([result.score(label) for label in LABELS], axis=-1)
    np.testing.assert_array_equal(scores.argmax(-1), result.mask)
    assert sum(result.shares().values()) == pytest.approx(1)


def test_pictures_of_a_result(segmenter):
    result = segmenter(photo(60, 80), LABELS)
    assert result.overlay().shape == (60, 80, 3)
    assert (result.overlay() != result.overlay(names=False)).any()
    assert result.side_by_side().shape[1] > 160
    assert result.overlay_groups().shape[1] > 240


def test_many_images_give_what_each_gives(segmenter):
    images = [photo(40, 60, 1), photo(64, 64, 2), photo(30, 90, 3), photo(40, 60, 4)]
    results = list(segmenter.batch(images, LABELS))
    assert len(results) == 4
    for image, result in zip(images, results, strict=True):
        np.testing.assert_array_equal(result.image, image)
        alone = segmenter(image, LABELS)
        np.testing.assert_array_equal(result.mask, alone.mask)
        np.testing.assert_allclose(result.scores, alone.scores, atol=1e-5)
        assert all((a == b).all() for a, b in zip(result.groups, alone.groups, strict=True))


def test_no_images_give_no_results(segmenter):
    assert list(segmenter.batch([], LABELS)) == []


def test_any_kind_of_image_gives_the_same(segmenter, tmp_path):
    image = photo(40, 60)
    Image.fromarray(image).save(tmp_path / "photo.png")
    expected = segmenter(image, LABELS).mask
    kinds = [str(tmp_path / "photo.png"), tmp_path / "photo.png", Image.fromarray(image)]
    for result in segmenter.batch(kinds, LABELS):
        np.testing.assert_array_equal(result.mask, expected)


def test_a_grey_image_is_segmented(segmenter):
    grey = photo(40, 60)[..., 0]
    expected = segmenter(np.repeat(grey[..., None], 3, axis=2), LABELS)
    np.testing.assert_array_equal(segmenter(grey, LABELS).mask, expected.mask)


def test_a_transparent_image_is_segmented_on_white(segmenter):
    image = np.concatenate([photo(40, 60), np.full((40, 60, 1), 255, np.uint8)], axis=2)
    image[:, :30, 3] = 0
    result = segmenter(image, LABELS)
    assert (result.image[:, :30] == 255).all()
    np.testing.assert_array_equal(result.image[:, 30:], image[:, 30:, :3])


def test_the_mask_lies_as_people_see_the_photo(segmenter, tmp_path):
    tags = Image.Exif()
    tags[0x0112] = 6
    Image.fromarray(photo(40, 60)).save(tmp_path / "turned.jpg", exif=tags)
    result = segmenter(tmp_path / "turned.jpg", LABELS)
    assert result.mask.shape == result.image.shape[:2] == (60, 40)


@pytest.mark.parametrize("size", [(20, 4000), (1, 1)])
def test_images_of_any_shape(segmenter, size):
    result = segmenter(np.full((*size, 3), 99, np.uint8), LABELS)
    assert result.mask.shape == size
    assert result.overlay_groups().ndim == 3


def test_500_labels(segmenter):
    labels = [f"thing {i}" for i in range(500)]
    result = segmenter(photo(40, 60), labels)
    assert len(result.classes) == result.scores.shape[-1] < 500
    assert set(np.unique(result.mask)) <= set(result.classes.tolist())
    unlikely = next(label for i, label in enumerate(labels) if i not in result.classes)
    assert not result.score(unlikely).any()
    assert result.overlay().shape == (40, 60, 3)


def test_a_background_comes_first(segmenter, with_background):
    image = photo(60, 80)
    result, plain = with_background(image, LABELS), segmenter(image, LABELS)
    assert result.labels == ("background", *LABELS)
    assert result.has_background
    foreground = result.mask > 0
    assert 0 < foreground.mean() < 1
    np.testing.assert_array_equal(result.mask[foreground] - 1, plain.mask[foreground])
    np.testing.assert_array_equal(result.colours[1:], plain.colours)
    grey = result.overlay(names=False)[~foreground]
    assert (np.ptp(grey, axis=-1) == 0).mean() > 0.5


def test_the_threshold_decides_what_is_background(pretrained):
    segmenter = Segmenter(pretrained, protocol="tcl", background=1.0)
    assert not segmenter(photo(60, 80), LABELS).mask.any()


@pytest.mark.parametrize("protocol", ["groupvit", "tcl"])
def test_another_threshold_gives_what_a_new_segmenter_gives_and_compiles_nothing(
    pretrained, protocol
):
    image, segmenter = photo(60, 80), Segmenter(pretrained, protocol=protocol)
    sizes = []
    for threshold in (0.3, 0.9):
        result = segmenter.with_background(threshold)(image, LABELS)
        expected = Segmenter(pretrained, protocol=protocol, background=threshold)(image, LABELS)
        np.testing.assert_array_equal(result.mask, expected.mask)
        assert result.labels == expected.labels
        sizes.append(segmenter._segment._scores._cache_size())
    assert len(set(sizes)) == 1
    assert segmenter(image, LABELS).labels == tuple(LABELS)
    assert segmenter.with_background(0.3).with_background(None)(image, LABELS).labels[0] == "dog"
    with pytest.raises(ValueError, match=r"background=0\.0: expected"):
        segmenter.with_background(0.0)


def test_groups_are_named_by_the_nearest_labels(pretrained, segmenter):
    result = segmenter(photo(60, 80), LABELS)
    vocabulary = [f"thing {i}" for i in range(20)]
    named = segmenter.name_groups(result, vocabulary, 3)
    embeddings = segmenter._encoder.class_embeddings(
        pretrained.variables, vocabulary, segmenter.protocol.prompts
    )
    assert len(named) == len(result.group_features) == 4
    for feature, nearest in zip(result.group_features, named, strict=True):
        similarity = embeddings @ feature / np.linalg.norm(feature)
        order = np.argsort(-similarity)[:3]
        assert [name for name, _ in nearest] == [vocabulary[i] for i in order]
        np.testing.assert_allclose([value for _, value in nearest], similarity[order], atol=1e-5)
    with pytest.raises(ValueError, match="labels: an empty list found"):
        segmenter.name_groups(result)


def test_labels_are_embedded_once(segmenter, monkeypatch):
    texts = []
    original = Encoder.text_embeddings
    monkeypatch.setattr(
        Encoder, "text_embeddings", lambda *args: texts.append(args[2]) or original(*args)
    )
    for labels in (["cat", "mat", "hat"], ("cat", " mat ", "hat"), ["mat", "cat", "hat"]):
        segmenter(photo(40, 60), labels)
    assert len(texts) == 2


def test_prompts_are_the_protocols_or_ones_own(pretrained, segmenter):
    assert segmenter.protocol.prompts == ("a photo of a {}.",)
    assert Segmenter(pretrained, prompts=["my {}", "{}?"]).protocol.prompts == ("my {}", "{}?")
    assert len(Segmenter(pretrained, protocol="tcl").protocol.prompts) == 9


def test_prompts_by_label_are_of_a_label_that_is_there(pretrained, segmenter):
    prompts = {"": ["a {}."], "Grass": ["green grass", "a lawn"]}
    by_label = Segmenter(pretrained, prompts=prompts)
    vectors = by_label._embed(("dog", "grass"))
    expected = segmenter._encoder.class_embeddings(
        pretrained.variables, ["dog", "grass"], {"": ["a {}."], "grass": prompts["Grass"]}
    )
    np.testing.assert_array_equal(vectors, expected)
    assert by_label(photo(40, 60), ["dog", "grass"]).labels == ("dog", "grass")
    message = r"prompts: 'Grass' is none of the 2 names found, the nearest of which is 'gras'"
    for call in (by_label, by_label.batch, lambda _, labels: by_label.mask_labels(labels)):
        with pytest.raises(ValueError, match=message):
            call(photo(40, 60), ["dog", "gras"])
    lenient = Segmenter(pretrained, prompts=prompts, other_prompts=True)
    assert lenient.mask_labels(["dog", "gras"]) == ("dog", "gras")


def test_a_checkpoint_is_read(pretrained, segmenter, tmp_path):
    save_pretrained(tmp_path / "export", pretrained, "safetensors")
    found = Segmenter.from_pretrained(tmp_path / "export")(photo(40, 60), LABELS)
    np.testing.assert_array_equal(found.mask, segmenter(photo(40, 60), LABELS).mask)


def test_the_published_model_gets_the_published_protocol_and_others_its_scale(segmenter):
    config = tiny.get_config().model
    config.image.image_size = 224
    published = weights.random_pretrained(config)
    assert Segmenter(published).protocol == Protocol()
    assert segmenter.protocol == Protocol(resize=(293, 64), window=64, stride=32)
    refined = Segmenter(published, pamr_iterations=10, window=224)
    assert refined.protocol == Protocol((1024, 224), 224, 112, pamr_iterations=10)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "labels: an empty list found, expected at least one label"),
        (["dog", "cat", "dog"], "labels: 'dog' found twice"),
        (["dog", "cat", " Dog"], "labels: 'Dog' found twice"),
        (["dog", "  "], "labels: an empty label found"),
        ("dog, cat", "labels: the text 'dog, cat' found, expected a list"),
    ],
)
def test_wrong_labels_are_named_before_anything_is_read(segmenter, labels, message):
    for call in (segmenter, segmenter.batch):
        with pytest.raises(ValueError, match=message):
            call(["none.jpg"], labels)


def test_background_is_no_label_beside_the_background(segmenter, with_background):
    with pytest.raises(ValueError, match="'background' found twice"):
        with_background(photo(40, 60), ["dog", "background", "cat"])
    assert segmenter(photo(40, 60), ["dog", "background", "cat"]).labels[1] == "background"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": ["a photo"]}, "prompts: 'a photo' found, expected one {}"),
        ({"prompts": ["{} {}"]}, "expected one {} where"),
        ({"prompts": ["{} {name}"]}, "expected one {} where"),
        ({"prompts": []}, "prompts: an empty list"),
        ({"prompts": "a {}"}, "prompts: the text 'a {}' found, expected a list"),
        ({"background": 1.5}, "background=1.5: expected"),
        ({"background": -1.0}, "background=-1.0: expected"),
        ({"protocol": "voc"}, "protocol: 'voc' found"),
        ({"window": 0}, "window=0"),
        ({"stride": 100}, "stride=100: expected at most"),
    ],
)
def test_wrong_options_are_named(pretrained, options, message):
    with pytest.raises(ValueError, match=message):
        Segmenter(pretrained, **options)


def test_an_unknown_knob_is_an_error(pretrained):
    with pytest.raises(TypeError, match="strid"):
        Segmenter(pretrained, strid=3)


def test_a_broken_image_among_many_is_named(segmenter, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match=r"broken\.png: "):
        list(segmenter.batch([photo(40, 60), tmp_path / "broken.png"], LABELS))
    with pytest.raises(ValueError, match=r"images\[1\]: int64 array"):
        list(segmenter.batch([photo(40, 60), np.zeros((3, 3), np.int64)], LABELS))


def test_a_score_of_no_label_is_an_error(segmenter):
    with pytest.raises(ValueError, match="label: 'cat' found, expected one of"):
        segmenter(photo(40, 60), LABELS).score("cat")


def test_probabilities_sum_to_one_and_agree_with_the_mask():
    """Where no label scores anything, all are as likely."""
    scores = np.array([[[0.2, 0.6], [0.3, 0.1], [0, 0]]], np.float32)
    classes = np.array([0, 2])
    mask = classes[scores.argmax(-1)]
    image = np.zeros((1, 3, 3), np.uint8)
    result = SegmentationResult(image, mask, ("background", "dog", "cat"), scores, classes, ())
    expected = [[[0.25, 0, 0.75], [0.75, 0, 0.25], [1 / 3] * 3]]
    np.testing.assert_allclose(result.probabilities, expected, rtol=1e-6)
    np.testing.assert_array_equal(result.probabilities[:, :2].argmax(-1), mask[:, :2])


def test_weights_that_are_no_numbers_are_refused(pretrained):
    params = {**pretrained.variables["params"], "logit_scale": np.float32("inf")}
    broken = pretrained._replace(variables={**pretrained.variables, "params": params})
    with pytest.raises(ValueError, match="logit_scale: 1 of 1 weights NaN or infinite found"):
        Segmenter(broken)


def test_the_largest_file_is_a_setting(pretrained, tmp_path):
    Image.fromarray(photo(32, 40)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a.png: png of 32x40 .* megapixels decoded; the limit"):
        Segmenter(pretrained, megapixels=0.001)(tmp_path / "a.png", ["dog"])
    result = Segmenter(pretrained, megapixels=0.001)(photo(32, 40), ["dog"])
    assert result.mask.shape == (32, 40)


def test_batch_takes_a_single_path(segmenter, tmp_path):
    Image.fromarray(photo(32, 40)).save(tmp_path / "a.png")
    single = list(segmenter.batch(str(tmp_path / "a.png"), ["dog"]))
    several = list(segmenter.batch([tmp_path / "a.png"], ["dog"]))
    assert len(single) == len(several) == 1
    np.testing.assert_array_equal(single[0].scores, several[0].scores)
