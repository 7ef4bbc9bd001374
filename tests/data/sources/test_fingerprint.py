import os

import pytest

from groupvit_jax.data.eval_sets import open_benchmark
from groupvit_jax.data.sources.fingerprint import fingerprint, fingerprint_of_files
from tests.data.eval_sets import miniatures


@pytest.mark.parametrize("name", ["folder", "voc", "image_folder", "flickr8k"])
def test_changes_with_photos_and_masks_and_with_nothing_else(name, tmp_path):
    getattr(miniatures, name)(tmp_path / "a")
    name = f"{name}_retrieval" if name == "flickr8k" else name
    before = fingerprint(open_benchmark(name, tmp_path / "a").source)
    (tmp_path / "a").rename(tmp_path / "b")
    for file in (tmp_path / "b").rglob("*"):
        os.utime(file, (0, 0))
    assert fingerprint(open_benchmark(name, tmp_path / "b").source) == before
    photo = next(iter(open_benchmark(name, tmp_path / "b").source.files()))
    miniatures.write_photo(photo, seed=9)
    assert fingerprint(open_benchmark(name, tmp_path / "b").source) != before


def test_one_pixel_of_a_mask_changes_it(tmp_path):
    miniatures.folder(tmp_path)
    before = fingerprint(open_benchmark("folder", tmp_path).source)
    miniatures.write_mask(tmp_path / "folder/masks/a.png", [[0, 1, 2], [255, 1, 2]])
    assert fingerprint(open_benchmark("folder", tmp_path).source) != before


def test_large_files_count_by_size_head_middle_and_end(tmp_path):
    file, content = tmp_path / "large.bin", bytearray(2**20)
    file.write_bytes(content)
    before = fingerprint_of_files([file])
    for place in (0, 2**19, 2**20 - 1):
        content[place] = 1
        file.write_bytes(content)
        assert fingerprint_of_files([file]) != before
        content[place] = 0
    file.write_bytes(content + b"\0")
    assert fingerprint_of_files([file]) != before
