import pytest

from groupvit_jax.data.eval_sets import RetrievalSet, open_benchmark
from groupvit_jax.data.images.decode import decode
from groupvit_jax.data.sources.samples import Source
from tests.data.eval_sets import miniatures

# Name, how it lies on disk, the set's own folder, number of images and of the first's captions.
SETS = {
    "coco": ("coco_retrieval", miniatures.coco_retrieval, "coco", 2, 5),
    "coco, val2017": ("coco_retrieval", miniatures.coco_captions, "coco", 2, 2),
    "coco, tfds": ("coco_retrieval", miniatures.coco_tfds, "coco_captions/2014/1.1.0", 2, 5),
    "flickr30k": ("flickr30k_retrieval", miniatures.flickr30k, "flickr30k", 2, 5),
    "flickr8k": ("flickr8k_retrieval", miniatures.flickr8k, "Flickr8k", 2, 5),
    "flickr8k, table": ("flickr8k_retrieval", miniatures.flickr8k_table, "flickr8k", 2, 2),
}


@pytest.mark.parametrize("case", SETS)
@pytest.mark.parametrize("own_folder", [False, True])
def test_images_of_the_split_have_their_captions(case, own_folder, tmp_path):
    name, draw, folder, num_images, num_captions = SETS[case]
    draw(tmp_path)
    opened = open_benchmark(name, tmp_path / folder if own_folder else tmp_path)
    assert isinstance(opened, RetrievalSet)
    assert isinstance(opened.source, Source)
    assert len(opened.source) == num_images
    sample = opened.source[0]
    assert len(sample["captions"]) == num_captions
    assert all(text == text.strip() for text in sample["captions"])
    assert decode(sample["image"]).ndim == 3
    assert opened.source.locate(0)


def test_captions_belong_to_their_image(tmp_path):
    miniatures.coco_captions(tmp_path)
    source = open_benchmark("coco_retrieval", tmp_path).source
    found = {source[i]["key"]: source[i]["captions"] for i in range(2)}
    assert found == {
        "000000000139.jpg": ["Caption 0 of 139", "Caption 1 of 139"],
        "000000000285.jpg": ["Caption 0 of 285", "Caption 1 of 285"],
    }


def test_karpathys_split_comes_before_val2017(tmp_path):
    miniatures.coco_captions(tmp_path)
    miniatures.coco_retrieval(tmp_path)
    source = open_benchmark("coco_retrieval", tmp_path).source
    assert "val2014" in source.locate(0)


@pytest.mark.parametrize("name", ["coco_retrieval", "flickr30k_retrieval", "flickr8k_retrieval"])
def test_missing_set_is_one_line_that_says_what_belongs_where(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"^{name}: {tmp_path}/.* not found; expected .*"):
        open_benchmark(name, tmp_path)


def test_missing_photo_is_named(tmp_path):
    miniatures.flickr30k(tmp_path)
    source = open_benchmark("flickr30k_retrieval", tmp_path).source
    (tmp_path / "flickr30k/flickr30k-images/1007129816.jpg").unlink()
    with pytest.raises(ValueError, match=r"flickr30k-images/1007129816.jpg: can't be read"):
        source[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [{"split": "test"}]}', "expected images with filename, split and sentences"),
        ("[]", "expected images with filename, split and sentences"),
        ('{"images": []}', "no image of split 'test' found"),
        (
            '{"images": [{"split": "test", "filename": "../x.jpg", "sentences": [{"raw": "x"}]}]}',
            r"file name '\.\./x.jpg' found",
        ),
    ],
)
def test_json_that_is_not_karpathys_is_named(content, message, tmp_path):
    miniatures.flickr30k(tmp_path)
    (tmp_path / "flickr30k/dataset_flickr30k.json").write_text(content)
    with pytest.raises(ValueError, match=rf"dataset_flickr30k.json: {message}"):
        open_benchmark("flickr30k_retrieval", tmp_path)
