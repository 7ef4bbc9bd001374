"""Commands that read and write URLs."""

import json

import pytest
from absl import flags
from absl.testing import flagsaver

from configs import tiny
from groupvit_jax.data.storage import objects, retries
from groupvit_jax.interop import load_pretrained
from groupvit_jax.interop.save import save_pretrained
from launch import common, compare, evaluate, export, sweep
from tests.compare.folders import write_sweep
from tests.data import object_store
from tests.data.eval_sets import miniatures
from tests.interop import weights

pytestmark = pytest.mark.slow

ROOT = f"s3://{object_store.BUCKET}"


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(retries, "RETRY", retries.Retry(first_seconds=0.01))
    with object_store.serve() as store:
        store.fault = store.first(1, "503", "PUT")
        yield store


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


def test_places_that_must_be_folders_say_so(capsys):
    with pytest.raises(ValueError, match="--output=s3://b/sweep: expected a folder"):
        sweep.parse_flags(["sweep", "--sweep=x.py", "--output=s3://b/sweep"])
    with flagsaver.flagsaver():
        flags.FLAGS(["evaluate", "--compilation_cache=s3://b/programs"])
        with pytest.raises(SystemExit):
            common.start_jax()
    assert "=s3://b/programs: expected a folder or gs://" in capsys.readouterr().err
