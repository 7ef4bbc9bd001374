import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from groupvit_jax.interop import load_pretrained, verify
from groupvit_jax.interop.save import save_pretrained
from launch import convert
from tests.interop import weights


@pytest.fixture(scope="module")
def pretrained():
    return weights.random_pretrained(weights.small_config())


@pytest.fixture
def source(tmp_path, pretrained):
    save_pretrained(tmp_path / "source", pretrained, "huggingface")
    return tmp_path / "source"


def run(*flags):
    return convert.main(convert.parse_flags(["convert", *map(str, flags)]))


def same(path, pretrained):
    found, expected = weights.flat(load_pretrained(path)), weights.flat(pretrained)
    return all(found[name].tobytes() == array.tobytes() for name, array in expected.items())


@pytest.mark.parametrize(
    ("kind", "name"),
    [("safetensors", "new"), ("huggingface", "new"), ("original", "new.pth")],
)
def test_converts_into_each_kind(source, tmp_path, pretrained, kind, name):
    output = tmp_path / "deep" / name
    flags = ["--from=huggingface", f"--to={kind}", f"--checkpoint={source}", f"--output={output}"]
    assert run(*flags) == 0
    assert same(output, pretrained)


def test_verify_prints_the_comparison_of_every_output(source, tmp_path, capsys):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    output = tmp_path / "new.pth"
    assert run(f"--checkpoint={source}", "--to=original", f"--output={output}", "--verify") == 0
    printed = capsys.readouterr().out
    for name in ("pooled image", "segment embeddings", "text embedding", "assignment 1"):
        row = next(line for line in printed.splitlines() if name in line)
        assert "ok" in row
    assert "DIFFERS" not in printed


def test_verify_fails_where_an_output_differs(source, tmp_path, capsys, monkeypatch):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    honest = verify.our_outputs

    def shifted(*arguments):
        outputs = honest(*arguments)
        return outputs | {"pooled text": outputs["pooled text"] + 1e-3}

    monkeypatch.setattr(verify, "our_outputs", shifted)
    flags = [f"--checkpoint={source}", "--to=safetensors", f"--output={tmp_path / 'new'}"]
    assert run(*flags, "--verify") == 1
    rows = [line for line in capsys.readouterr().out.splitlines() if "DIFFERS" in line]
    assert len(rows) == 1
    assert "pooled text" in rows[0]


def test_another_resolution(source, tmp_path):
    output = tmp_path / "new"
    flags = ["--to=huggingface", f"--output={output}", "--image_size=48"]
    assert run(f"--checkpoint={source}", *flags) == 0
    found = load_pretrained(output)
    assert found.model_config.image.image_size == 48
    positions = found.variables["params"]["image_encoder"]["position_embedding"]
    assert positions.shape == (1, 144, 32)


@pytest.fixture
def clip_source(tmp_path):
    config = weights.small_config()
    config.text.update(vocab_size=49408, end_of_text_id=49407)
    save_pretrained(tmp_path / "clip", weights.random_pretrained(config), "safetensors")
    return tmp_path / "clip"


@pytest.fixture
def image(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    pillow.fromarray(pixels).save(tmp_path / "000000039769.png")
    return tmp_path / "000000039769.png"


def test_goldens_differ_for_other_weights(clip_source, image, capsys):
    assert run(f"--checkpoint={clip_source}", f"--goldens={image}") == 1
    printed = capsys.readouterr().out
    assert "13.3523" in printed
    assert "16.1873" in printed
    assert printed.count("differs by") == 2


def test_goldens_agree_for_the_weights_that_they_are_of(clip_source, image, capsys, monkeypatch):
    logits = tuple(verify.golden_logits(load_pretrained(clip_source), image))
    monkeypatch.setitem(verify.GOLDEN_LOGITS, "gcc-yfcc", logits)
    assert run(f"--checkpoint={clip_source}", f"--goldens={image}") == 0
    assert "agrees" in capsys.readouterr().out


def test_golden_logits_are_those_of_transformers(clip_source, image, tmp_path):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pillow = pytest.importorskip("PIL.Image")
    pretrained = load_pretrained(clip_source)
    save_pretrained(tmp_path / "hf", pretrained, "huggingface")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path / "hf")
    images = transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )(pillow.open(image), return_tensors="pt")
    texts = tokenizer(list(verify.GOLDEN_TEXTS), padding=True, return_tensors="pt")
    model = transformers.GroupViTModel.from_pretrained(tmp_path / "hf").eval()
    expected = model(**texts, **images).logits_per_image[0].detach().numpy()
    np.testing.assert_allclose(verify.golden_logits(pretrained, image), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--to=original"], "--output: missing"),
        (["--output=new"], "--to: missing"),
        (["--verify"], "--to: missing"),
        (["--to=original", "--output=source"], "--output=source: exists already"),
        (["--to=original", "--output=new", "--from=original"], "--from=original, but source is"),
        (["--to=original", "--output=new", "--image_size=33"], "model.image.image_size: 33"),
        (["--goldens=none.jpg"], "--goldens=none.jpg: no such file"),
    ],
)
def test_a_wrong_flag_ends_with_one_line(source, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run("--checkpoint=source", *flags)
    assert stopped.value.code == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert not Path("new").exists()


def test_the_command_runs(source, tmp_path):
    command = [sys.executable, "-m", "launch.convert", f"--checkpoint={source}"]
    command += ["--to=safetensors", f"--output={tmp_path / 'new'}"]
    root = Path(convert.__file__).parents[1]
    result = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    assert result.stdout == f"wrote {tmp_path / 'new'}\n"
