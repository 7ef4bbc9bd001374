import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from groupvit_jax.data.text import tokenizers
from groupvit_jax.data.text.vocabulary import read_vocabulary
from groupvit_jax.runs import exit_codes
from launch import train_tokenizer

CAPTIONS = [
    f"a {color} {thing} {place}"
    for color in ("red", "blue", "green", "brown", "yellow")
    for thing in ("dog", "boat", "kite", "umbrella", "bicycle", "house")
    for place in ("on the grass", "near the water", "in the park", "behind a fence")
]


def _run(*flags):
    train_tokenizer.main(train_tokenizer.parse_flags(["train_tokenizer", *flags]))


def _write_text(path):
    path.write_text("\n".join(CAPTIONS), "utf-8")


def _write_csv(path):
    rows = [f'{i}.jpg,"{caption}, "' for i, caption in enumerate(CAPTIONS)]
    path.write_text("\n".join(["image,caption", *rows]), "utf-8-sig")


def _write_tsv(path):
    rows = [f"{i}.jpg\t{caption}" for i, caption in enumerate(CAPTIONS)]
    path.write_text("\n".join(["image\tcaption", *rows]), "utf-8")


def _write_tar(path):
    with tarfile.open(path, "w") as tar:
        for i, caption in enumerate([*CAPTIONS, " "]):  # the last one is broken: no caption
            for extension, content in (("jpg", b"-"), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{i:05d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("captions.txt", _write_text),
        ("captions.csv", _write_csv),
        ("captions.tsv", _write_tsv),
        ("captions.tar", _write_tar),
    ],
)
def test_trains_on_any_kind_of_input(tmp_path, capsys, name, write):
    write(tmp_path / name)
    output = tmp_path / "captions.model"
    _run(f"--input={tmp_path / name}", "--vocab_size=290", f"--output={output}")
    vocabulary = read_vocabulary("sentencepiece", str(output))
    tokenizer = tokenizers.make_tokenizer(vocabulary, 16)
    assert (tokenizer.vocab_size, tokenizer.end_of_text_id) == (290, 3)
    assert "--config.model.text.vocab_size=290" in capsys.readouterr().out
    # Characters that were not read become bytes (ids 4 to 259): file names are no captions.
    captions, names = tokenizer(CAPTIONS), tokenizer(["jpg"])
    assert not ((captions >= 4) & (captions < 260)).any()
    assert ((names >= 4) & (names < 260)).any()
    assert not list(tmp_path.glob("*.tmp"))


def test_a_glob_reads_all_shards_and_a_limit_reads_every_nth_sample(tmp_path):
    _write_tar(tmp_path / "a.tar")
    _write_tar(tmp_path / "b.tar")
    pattern = str(tmp_path / "*.tar")
    assert list(train_tokenizer.read_captions(pattern, "caption", 0)) == CAPTIONS * 2
    assert list(train_tokenizer.read_captions(pattern, "caption", 121))[:60] == CAPTIONS[::2]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--input=none.csv", "--output=a.model"], "--input=none.csv: there is no such file"),
        (["--input=none*.tar", "--output=a.model"], "no file matches"),
        (["--input=x.csv", "--output=a.bin"], "expected a name that ends with .model"),
        (["--input=x.csv", "--output=none/a.model"], "none is no folder that can be written"),
        (["--input=x.csv", "--output=a.model", "--max_captions=5"], "--max_captions=5"),
        (["--input=x.csv", "--output=a.model", "--caption_column=t"], "--caption_column=t: x.csv"),
        (["--input=x.csv", "--output=a.model", "--vocab_size=9"], "vocab_size=9: "),
    ],
)
def test_a_wrong_flag_ends_with_one_line_that_names_it(
    tmp_path, monkeypatch, capsys, flags, message
):
    monkeypatch.chdir(tmp_path)
    _write_csv(tmp_path / "x.csv")
    with pytest.raises(SystemExit) as stopped:
        _run(*flags)
    assert stopped.value.code == exit_codes.BAD_INPUT
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
    assert os.listdir() == ["x.csv"]


def test_the_command_runs(tmp_path):
    _write_text(tmp_path / "captions.txt")
    command = [sys.executable, "-m", "launch.train_tokenizer", "--vocab_size=290"]
    command += [f"--input={tmp_path}/captions.txt", f"--output={tmp_path}/captions.model"]
    subprocess.run(command, check=True, cwd=Path(train_tokenizer.__file__).parents[1])
    assert (tmp_path / "captions.model").stat().st_size > 0
