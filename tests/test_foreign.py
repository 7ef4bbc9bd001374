import errno
import json
import tracemalloc

import numpy as np
import pytest

from groupvit_jax.data.eval_sets.coco_instances import draw_instances
from groupvit_jax.data.sources.masks import read_mask
from groupvit_jax.foreign import naming
from groupvit_jax.interop import load_pretrained
from groupvit_jax.interop.huggingface_config import to_model_config
from groupvit_jax.interop.inert_pickle import read_pickle
from groupvit_jax.interop.torch_file import read_torch_file
from tests.data.image_files import encode
from tests.fuzz.torch_pickles import STATE, TENSOR, torch_file


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("width"), r"^a/b\.json: damaged or of another kind \(KeyError: 'width'\)$"),
        (RecursionError("deep"), r"^a/b\.json: damaged .*RecursionError: deep"),
        (ValueError("no width"), r"^a/b\.json: no width$"),
        (ValueError("a/b.json: no width"), r"^a/b\.json: no width$"),
        (PermissionError(errno.EACCES, "Denied", "x"), r"^a/b\.json: can't be read \(Denied\)$"),
    ],
)
def test_every_error_names_the_file(error, message):
    with pytest.raises(ValueError, match=message), naming("a/b.json"):
        raise error


def test_our_own_missing_files_stay():
    with pytest.raises(FileNotFoundError, match=r"^a/b: no such file"), naming("a/b"):
        raise FileNotFoundError("a/b: no such file")


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", '{"format": "groupvit_jax"}', "\ud800"])
def test_a_directory_with_a_foreign_configuration_is_one_sentence(tmp_path, content):
    (tmp_path / "config.json").write_text(content, errors="surrogatepass")
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load_pretrained(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        ("vision_config", {"hidden_size": "wide"}, r"TypeError"),
        ("vision_config", {"hidden_size": 10**400}, r"vision: width is 1000.*expected numbers"),
        ("vision_config", {"depths": [10**5]}, r"vision: 100000 layers, expected up to 200"),
        ("text_config", {"num_hidden_layers": 10**5}, r"text: 100000 layers, expected up to 200"),
        ("text_config", {"vocab_size": 2.5}, r"text: vocab_size is 2\.5"),
        ("text_config", [], None),
        ("text_config", 5, r"TypeError"),
    ],
)
def test_configurations_of_hugging_face_are_checked(tmp_path, section, fields, message):
    config = json.loads(json.dumps({"model_type": "groupvit", section: fields}))
    path = tmp_path / "config.json"
    if message is None:
        to_model_config(config, path)
        return
    with pytest.raises(ValueError, match=message) as error, naming(path):
        to_model_config(config, path)
    assert str(path) in str(error.value)


def test_instances_are_drawn_one_by_one():
    """All at once, these would take 100 MB, and those of a large photo gigabytes."""
    instance = {"category_id": 1, "iscrowd": 0, "segmentation": [[0, 0, 9, 0, 9, 9]]}
    tracemalloc.start()
    mask = draw_instances([instance] * 100, (1000, 1000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 20 < mask.sum() < 100
    assert peak < 20e6


def test_outlines_are_limited():
    zigzag = [x for i in range(4000) for x in (0 if i % 2 else 99_999, i)]
    instance = {"category_id": 1, "iscrowd": 0, "segmentation": [zigzag]}
    with pytest.raises(ValueError, match=r"polygons of 399,\d+,\d+ pixels, more than 1,048,576"):
        draw_instances([instance], (100, 100))


@pytest.mark.parametrize(
    "chunk", [b"IHDR", b"PLTE", b"tRNS", b"gAMA", b"pHYs", b"iCCP", b"cHRM", b"acTL", b"fcTL"]
)
def test_masks_with_short_chunks_are_one_sentence(chunk):
    data = encode(np.zeros((4, 6), np.uint8), "PNG")
    for content in (b"", b"\0", b"\0" * 3):
        short = len(content).to_bytes(4, "big") + chunk + content + b"\0" * 4
        message = "mask read"
        try:
            read_mask(data[:33] + short + data[33:], (4, 6))
        except ValueError as error:
            message = str(error)
        assert message.startswith(("mask read", "mask is no readable PNG"))


def test_shared_and_repeated_parts_of_pickles_are_limited(tmp_path):
    path = tmp_path / "model.pth"
    tensor = TENSOR.replace(b"I6\n", b"I25000\n").replace(b"I2\nI3\n", b"I1\nI25000\n")
    views = b"".join(b"V%d\ng0\ns" % i for i in range(99))
    path.write_bytes(torch_file(b"(dVa\n" + tensor + b"p0\ns" + views + b".", bytes(100_000)))
    with pytest.raises(ValueError, match=r"model\.pth: 100 tensors take 10,000,000 bytes"):
        read_torch_file(path)
    pairs = b"(lp0\n" + b"(Va\nI1\nta" * 50_000 + b"0"
    calls = b"ccollections\nOrderedDict\n(g0\ntR0" * 100
    with pytest.raises(ValueError, match="dictionaries of more than"):
        read_pickle(pairs + calls + STATE)


@pytest.mark.parametrize("size", [b"I9999999999999999\n", b"L" + b"9" * 4000 + b"L\n"])
def test_shapes_of_huge_integers_are_refused(tmp_path, size):
    path = tmp_path / "model.pth"
    path.write_bytes(torch_file(STATE.replace(b"I2\n", size), bytes(24)))
    with pytest.raises(ValueError, match=r"model\.pth.*a tensor without storage, shape or strides"):
        read_torch_file(path)
