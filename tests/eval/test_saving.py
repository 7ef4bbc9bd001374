import io
import re

import numpy as np
import PIL.Image
import pytest

from groupvit_jax.eval import metrics
from groupvit_jax.eval.protocol import Protocol
from groupvit_jax.eval.saving import PredictionFiles, check_kinds, groups_npz, scores_npz
from groupvit_jax.eval.segment_images import SegmentedImage
from groupvit_jax.eval.segmentation_evaluator import Segmentation
from tests.eval.photos import NAMES, Photos, with_highest_scale

MASK = np.array([[0, 2], [2, 1]])
GROUPS = np.array([[0, 0], [0, 3]])
MAPS = np.full((2, 2, 4), 0.25, np.float32)
FOUND = SegmentedImage(
    MASK, np.full((2, 2, 3), 0.1, np.float32), np.array([0, 1, 2]), (GROUPS,), (MAPS,)
)


def test_each_kind_of_file_holds_what_was_predicted(tmp_path):
    files = PredictionFiles(tmp_path, ("masks", "scores", "groups"), ["background", "a", "b"], True)
    image = np.full((2, 2, 3), 200, np.uint8)
    files("val/x", image, FOUND)
    files.finish()
    mask = PIL.Image.open(tmp_path / "masks/val/x.png")
    assert mask.mode == "P"
    assert mask.getpalette()[:3] == [0, 0, 0]  # the background
    np.testing.assert_array_equal(np.asarray(mask), MASK)
    scores = np.load(tmp_path / "scores/val/x.npz")
    assert scores["scores"].dtype == np.float16
    np.testing.assert_array_equal(scores["classes"], [0, 1, 2])
    groups = np.load(tmp_path / "groups/val/x.npz")
    np.testing.assert_array_equal(groups["groups_1"], GROUPS)
    np.testing.assert_array_equal(groups["maps_1"], MAPS)
    page = (tmp_path / "groups.html").read_text()
    assert "token 0: val/x (75 %)" in page
    assert "token 3: val/x (25 %)" in page
    assert "token 1" not in page


def test_page_has_the_images_with_the_largest_shares(tmp_path):
    files = PredictionFiles(tmp_path, ("groups",), ["a"], False)
    for number in range(8):
        groups = np.ones((1, 8), int)
        groups[0, : number + 1] = 0
        found = FOUND._replace(groups=(groups,), mask=groups * 0)
        files(f"photo{number}", np.zeros((1, 8, 3), np.uint8), found)
    files.finish()
    page = (tmp_path / "groups.html").read_text()
    row = re.search(r"<p>token 0: (.*)</p>", page)[1]
    assert re.findall(r"photo\d", row) == [f"photo{i}" for i in range(7, 1, -1)]


def test_unknown_kind_is_named():
    with pytest.raises(ValueError, match=r"--save: 'mask' found, expected some of masks, scores"):
        check_kinds(["mask"])


def test_arrays_come_back():
    loaded = np.load(io.BytesIO(scores_npz(FOUND)))
    np.testing.assert_allclose(loaded["scores"], 0.1, atol=1e-3)
    assert set(np.load(io.BytesIO(groups_npz(FOUND)))) == {"groups_1", "maps_1"}


@pytest.mark.slow
def test_saved_masks_count_as_without_saving(encoder, variables):
    variables = with_highest_scale(variables)
    protocol = Protocol(resize=(64, 32), window=32, stride=16, background_threshold=0.3)
    evaluator = Segmentation(encoder, Photos([(32, 32), (40, 32)]), NAMES, protocol)
    kept = []
    found = evaluator.saved(
        variables, lambda index, image, result: kept.append((index, result)), groups=True
    )
    np.testing.assert_array_equal(found, evaluator.confusion(variables))
    assert [index for index, _ in kept] == [0, 1]
    assert [m.shape[:2] for m in kept[0][1].group_maps] == [(4, 4)] * len(kept[0][1].groups)
    np.testing.assert_allclose(kept[0][1].group_maps[-1].sum(-1), 1, atol=1e-5)
    assert metrics.mean_iou(found) > 0
