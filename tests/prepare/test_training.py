import json

import numpy as np
import pytest

from configs import base
from groupvit_jax.data.images import superpixels
from groupvit_jax.data.pipeline.contrastive import make_train_examples
from groupvit_jax.data.text import nouns
from groupvit_jax.data.text.tokenizers import ClipTokenizer
from groupvit_jax.prepare.preparation import Options, prepare
from groupvit_jax.prepare.runners import local_runner
from tests.data.image_files import encode as encode_as
from tests.data.image_files import photo
from tests.data.shard_files import encode, write_tar


def examples_of(config, **options):
    return make_train_examples(config.data, ClipTokenizer(), image_size=16, seed=0, **options)


def test_training_takes_what_is_stored_in_place_of_tagging(tmp_path, monkeypatch):
    sample = {"jpg": encode(), "json": json.dumps({"captions": ["a dog runs", "two"]}).encode()}
    raw = write_tar(tmp_path / "raw.tar", [(str(i), sample) for i in range(4)])
    options = Options(raw, str(tmp_path / "out"), duplicates="keep", tokenizer="clip")
    prepare(options, local_runner(1))
    config = base.get_config()
    for kind in nouns.KINDS:
        config.data.noun_kind = kind
        config.data.sources.pairs = dict(kind="webdataset", pattern=raw)
        tagged = examples_of(config)
        expected = list(tagged.read(range(8)))
        config.data.sources.pairs.pattern = f"{options.output}/*.tar"
        stored = examples_of(config)
        with monkeypatch.context() as patch:
            patch.setattr(nouns, "_lexicon_tags", None)
            for i in range(8):
                [example] = stored.read([i])
                assert example.keys() == expected[i].keys()
                for name in example:
                    np.testing.assert_array_equal(example[name], expected[i][name])


@pytest.mark.parametrize("kind", ["webdataset", "tfds"])
def test_training_on_pixels_is_training_on_the_decoded_files(tmp_path, kind):
    """With one seed, the same crops of the same pixels as of files that lose nothing."""
    images = [photo(40, 60, seed) for seed in range(4)]
    samples = [
        (str(i), {"png": encode_as(image, "PNG"), "txt": b"a dog"})
        for i, image in enumerate(images)
    ]
    raw = write_tar(tmp_path / "raw.tar", samples)
    options = Options(raw, str(tmp_path / "out"), format=kind, encoding="pixels")
    prepare(options, local_runner(1))
    config = base.get_config()
    config.data.sources.pairs = dict(kind="webdataset", pattern=raw)
    expected = list(examples_of(config).read(range(12)))
    stored = dict(kind="tfds", data_dir=options.output)
    if kind == "webdataset":
        stored = dict(kind="webdataset", pattern=f"{options.output}/*.tar")
    config.data.sources.pairs = stored
    found = list(examples_of(config).read(range(12)))
    for example, same in zip(found, expected, strict=True):
        np.testing.assert_array_equal(example["image"], same["image"])
        assert example["index"] == same["index"]
        assert example["broken"] == 0


@pytest.mark.parametrize("kind", ["webdataset", "tfds"])
def test_training_takes_stored_superpixels(tmp_path, monkeypatch, kind):
    def dark_and_bright(image):
        return np.where(image[..., 0] > 127, 2, 1).astype(np.uint8)

    monkeypatch.setattr(superpixels, "find", dark_and_bright)
    image = np.zeros((32, 48, 3), np.uint8)
    image[:, 24:] = 255
    raw = write_tar(tmp_path / "raw.tar", [("0", {"png": encode_as(image, "PNG"), "txt": b"a"})])
    options = Options(raw, str(tmp_path / "out"), format=kind, superpixels=True)
    prepare(options, local_runner(1))
    config = base.get_config()
    config.data.augment.num_ops = 0
    stored = dict(kind="tfds", data_dir=options.output)
    if kind == "webdataset":
        stored = dict(kind="webdataset", pattern=f"{options.output}/*.tar")
    config.data.sources.pairs = stored
    for example in examples_of(config, superpixel_grid=4).read(range(8)):
        found = example["superpixels"]
        assert (found.shape, found.dtype) == ((4, 4), np.int32)
        # Both pixels beside a patch's centre tell what it shows, unless they differ.
        sides = np.stack([example["image"][2::4, i::4, 0] for i in (1, 2)])
        assert (found[(sides > 225).all(axis=0)] == 2).all()
        assert (found[(sides < 30).all(axis=0)] == 1).all()
    config.data.sources.pairs = dict(kind="webdataset", pattern=raw)
    expected = r"config\.loss\.superpixel_weight: .*raw\.tar: 0 has no superpixels, expected shards"
    with pytest.raises(ValueError, match=expected):
        examples_of(config, superpixel_grid=4)


def test_examples_have_the_rows_of_their_captions_nouns(tmp_path):
    captions = json.dumps({"captions": ["the Grass and a dog", "a tree"]}).encode()
    raw = write_tar(tmp_path / "raw.tar", [("0", {"jpg": encode(), "json": captions})])
    options = Options(raw, str(tmp_path / "out"))
    prepare(options, local_runner(1))
    config, rows = base.get_config(), {"dog": 0, "grass": 1}
    for pattern in (raw, f"{options.output}/*.tar"):
        config.data.sources.pairs = dict(kind="webdataset", pattern=pattern)
        found = {
            tuple(example["bank_nouns"][:2].tolist())
            for example in examples_of(config, bank_rows=rows).read(range(8))
        }
        assert found == {(1, 0), (-1, -1)}
