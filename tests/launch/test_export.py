import subprocess
import sys
from pathlib import Path

import pytest

from groupvit_jax.interop import load_pretrained
from groupvit_jax.interop.save import save_pretrained
from launch import export
from tests.interop import weights


@pytest.fixture(scope="module")
def pretrained():
    return weights.random_pretrained(weights.small_config())


@pytest.fixture
def source(tmp_path, pretrained):
    save_pretrained(tmp_path / "source.pth", pretrained, "original")
    return tmp_path / "source.pth"


def run(*flags):
    return export.main(export.parse_flags(["export", *map(str, flags)]))


def test_writes_every_format_that_is_asked_for(source, tmp_path, pretrained, capsys):
    output = tmp_path / "exports"
    formats = "safetensors,huggingface,original,stablehlo,onnx"
    run(f"--checkpoint={source}", f"--format={formats}", f"--output={output}")
    expected = weights.flat(pretrained)
    for name in ("safetensors", "huggingface", "original.pth"):
        found = weights.flat(load_pretrained(output / name))
        assert all(found[n].tobytes() == array.tobytes() for n, array in expected.items()), name
    for kind in ("stablehlo", "onnx"):
        names = {path.name for path in (output / kind).iterdir()}
        assert names == {f"image.{kind}", f"text.{kind}", "config.json"}
    assert len(capsys.readouterr().out.splitlines()) == 5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format=tflite"], "--format=tflite: expected one or more of"),
        (["--format=safetensors,tflite"], "--format=tflite"),
        (["--format=original", "--image_size=32,64", "--output=sizes"], "2 sizes found for"),
        (["--format=original", "--checkpoint=none"], "none: no such file or directory"),
        (["--format=original", "--output=."], "original.pth exists already"),
    ],
)
def test_a_wrong_flag_ends_with_one_line_before_anything_is_written(
    source, tmp_path, monkeypatch, capsys, flags, message
):
    monkeypatch.chdir(tmp_path)
    Path("original.pth").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        run(f"--checkpoint={source}", "--output=new", *flags)
    assert stopped.value.code == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_the_command_runs(source, tmp_path):
    command = [sys.executable, "-m", "launch.export", f"--checkpoint={source}"]
    command += ["--format=safetensors", f"--output={tmp_path / 'new'}"]
    root = Path(export.__file__).parents[1]
    result = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    assert result.stdout == f"wrote {tmp_path / 'new' / 'safetensors'}\n"
