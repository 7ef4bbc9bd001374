import re
from pathlib import Path

import numpy as np
import pytest

from groupvit_jax.data import eval_sets
from groupvit_jax.data.eval_sets import registry
from tests.data.eval_sets import miniatures

DOCS = Path("docs/benchmarks.md").read_text()


def test_every_set_is_there_and_documented():
    assert set(eval_sets.NAMES) == {
        *("voc", "voc20", "context", "context59", "coco_object", "coco_stuff"),
        *("cityscapes", "ade20k", "folder", "imagenet", "image_folder"),
        *("imagenet_knn", "imagenet_linear_probe"),
        *("image_folder_knn", "image_folder_linear_probe"),
        *("coco_retrieval", "flickr30k_retrieval", "flickr8k_retrieval"),
    }
    for name in eval_sets.NAMES:
        assert f"`{name}`" in DOCS


def test_unknown_name_is_an_error_that_lists_the_known(tmp_path):
    with pytest.raises(
        ValueError, match=r"benchmark 'voc2012' found, expected one of .*voc, voc20"
    ):
        eval_sets.open_benchmark("voc2012", tmp_path)


def test_name_can_be_taken_once():
    with pytest.raises(ValueError, match="benchmark 'voc' is registered already"):
        eval_sets.register("voc")


def test_documented_example_of_a_new_set_works(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_OPENERS", dict(registry._OPENERS))
    (example,) = re.findall(r"```python\n(\"\"\".*?)```", DOCS, re.DOTALL)
    exec(compile(example, "docs/benchmarks.md", "exec"), {})
    for name in ("0016E5_07959", "0016E5_07961"):
        miniatures.write_photo(tmp_path / f"CamVid/test/{name}.png")
        miniatures.write_mask(tmp_path / f"CamVid/testannot/{name}.png", [[0, 10, 11]] * 2)
    opened = eval_sets.open_benchmark("camvid", tmp_path)
    assert len(opened.source) == 2
    assert opened.class_names[0] == "sky"
    np.testing.assert_array_equal(opened.source[0].mask, [[0, 10, 255]] * 2)
