"""Commands that read and write URLs."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from configs import finetune_voc, tiny
from groupvit_jax.data.storage import objects
from groupvit_jax.interop import load_pretrained
from groupvit_jax.interop.save import save_pretrained
from groupvit_jax.train.tasks import task_of
from launch import common, compare, evaluate, export
from tests.compare.folders import write_sweep
from tests.data import object_store, quick_retries
from tests.data.eval_sets import miniatures
from tests.interop import weights
from tests.waiting import PATIENCE

pytestmark = pytest.mark.slow

ROOT = f"s3://{object_store.BUCKET}"


@pytest.fixture(scope="module")
def served():
    with object_store.serve() as store:
        yield store


@pytest.fixture
def store(served):
    served.clear()
    served.fault = served.first(1, "503", "PUT")
    with quick_retries.patched():
        yield served


def put(folder, url):
    for path in folder.rglob("*"):
        if path.is_file():
            objects.upload(path, f"{url}/{path.relative_to(folder).as_posix()}")


def test_an_export_on_a_bucket_is_evaluated_on_a_set_there(store, tmp_path, capsys):
    pretrained = weights.random_pretrained(tiny.get_config().model)
    save_pretrained(tmp_path / "source.pth", pretrained, "original")
    objects.upload(tmp_path / "source.pth", f"{ROOT}/source.pth")
    arguments = ["export", f"--checkpoint={ROOT}/source.pth", "--format=safetensors"]
    arguments.append(f"--output={ROOT}/exports/")
    export.main(export.parse_flags(arguments))
    assert capsys.readouterr().out == f"wrote {ROOT}/exports/safetensors\n"
    found = weights.flat(load_pretrained(f"{ROOT}/exports/safetensors"))
    expected = weights.flat(pretrained)
    assert all(found[n].tobytes() == array.tobytes() for n, array in expected.items())
    with pytest.raises(SystemExit):
        export.main(export.parse_flags(arguments))
    assert f"--output={ROOT}/exports/: safetensors exists already" in capsys.readouterr().err

    miniatures.voc(tmp_path / "data")
    put(tmp_path / "data", f"{ROOT}/data")
    argv = ["evaluate", f"--checkpoint={ROOT}/exports/safetensors", f"--data_dir={ROOT}/data"]
    argv += [f"--output={ROOT}/results", "--benchmarks=voc", "--examples=0"]
    for result in ("mIoU", "voc: measured before"):
        with flagsaver.flagsaver():
            flags.FLAGS(argv)
            assert evaluate.main([]) == 0
        printed = "".join(capsys.readouterr())
        assert result in printed
        assert f"Report: {ROOT}/results/report.html" in printed
    [content] = objects.read_objects([f"{ROOT}/results/results.json"])
    assert json.loads(content)["benchmarks"]["voc"]["set"]["path"] == f"{ROOT}/data"


def test_a_glob_of_runs_on_a_bucket_is_compared_into_it(store, tmp_path, capsys):
    runs = write_sweep(tmp_path / "sweep", {(w, 1e-3, s): 0.3 + w for w in (0, 1) for s in (0, 1)})
    put(runs, f"{ROOT}/runs")
    arguments = ["compare", f"{ROOT}/runs/*", f"--output={ROOT}/comparison"]
    assert compare.main(compare.parse_flags(arguments)) == 0
    assert f"compared 4 runs into {ROOT}/comparison/comparison.html" in capsys.readouterr().out
    assert sorted(objects.find_objects(f"{ROOT}/comparison")) == [
        "comparison.csv", "comparison.html", "comparison.json", "comparison.md"
    ]  # fmt: skip
    store.fault = lambda method, path: "403" if method == "PUT" else None
    with pytest.raises(SystemExit):
        compare.main(compare.parse_flags(arguments))
    error = capsys.readouterr().err
    assert f"--output={ROOT}/comparison: can't be read or written" in error
    assert error.count("\n") == 1


def test_masks_on_a_bucket_are_trained_with(store, tmp_path):
    miniatures.voc(tmp_path / "data")
    put(tmp_path / "data", f"{ROOT}/voc")
    config = finetune_voc.get_config()
    config.model.image.image_size = 16
    config.data.sources.voc.update(split="val", data_dir=str(tmp_path / "data"))
    expected = task_of(config).make_examples(config, None).read(range(4))
    config.data.sources.voc.data_dir = f"{ROOT}/voc"
    found = task_of(config).make_examples(config, None).read(range(4))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["mask"], other["mask"])
    config.data.sources.voc.data_dir = f"{ROOT}/none"
    with pytest.raises(FileNotFoundError, match=f"sources.voc.data_dir={ROOT}/none: .*no such"):
        task_of(config).make_examples(config, None)


def test_stores_that_jax_cannot_reach_are_one_line(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "tensorflow")
    for url, message in (
        ("s3://b/programs", "expected gs:// or a folder, or an environment without TensorFlow"),
        ("az://b/programs", "expected a folder, gs:// or s3://"),
    ):
        with flagsaver.flagsaver():
            flags.FLAGS(["evaluate", f"--compilation_cache={url}"])
            with pytest.raises(SystemExit):
                common.start_jax()
        assert f"--compilation_cache={url}: {message}" in capsys.readouterr().err


PROGRAM = """
import sys
from importlib.machinery import PathFinder

find = PathFinder.find_spec  # where TensorFlow is installed, its file system would be taken
PathFinder.find_spec = classmethod(
    lambda cls, name, *args: None if name.split(".")[0] == "tensorflow" else find(name, *args)
)
from absl import flags
from launch import common

common.define_process_flags()
flags.FLAGS(sys.argv)
common.start_jax()
import jax

jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
assert jax.jit(lambda x: x + 1)(1) == 2
"""


def test_compiled_programs_are_kept_on_s3_and_read_again(store):
    command = [sys.executable, "-c", PROGRAM, f"--compilation_cache={ROOT}/programs"]
    for _ in range(2):
        store.requests.clear()
        subprocess.run(command, check=True, timeout=PATIENCE)
    assert store.reads("programs")
    assert not [path for method, path in store.requests if method == "PUT"]
