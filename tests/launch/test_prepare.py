import functools
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import simplejpeg

from configs import tiny
from groupvit_jax.data.sources.pairs import make_source
from groupvit_jax.data.text.noun_bank import read_noun_bank
from groupvit_jax.data.text.tokenizers import make_tokenizer
from groupvit_jax.interop.save import save_pretrained
from groupvit_jax.prepare.preparation import Options, prepare
from groupvit_jax.prepare.runners import local_runner
from launch.prepare import main, parse_flags
from tests.data.image_files import photo
from tests.data.shard_files import encode, write_tar
from tests.interop.weights import random_pretrained
from tests.waiting import PATIENCE


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "launch.prepare", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=PATIENCE)


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.tar")}


def test_captions_and_photos_become_a_source(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(3):
        (tmp_path / "photos" / f"{i}.jpg").write_bytes(encode(value=i))
    (tmp_path / "pairs.csv").write_text("image,caption\n0.jpg,a\n1.jpg,b\n1.jpg,c\n4.jpg,d\n")
    arguments = [f"--input={tmp_path}/pairs.csv", f"--images={tmp_path}/photos"]
    result = run(*arguments, f"--output={tmp_path}/shards")
    assert result.returncode == 0, result.stderr
    *table, lost, last = result.stdout.splitlines()
    assert [line.split() for line in table] == [
        ["images", "captions"],
        ["read", "3", "4"],
        ["written", "2", "3"],
        ["dropped:", "unreadable", "file", "1", "1"],
    ]
    assert lost == "prompts that don't fit into config.data.packed_length=80: 0.00% of 6"
    assert last.startswith("1 shards, ")
    assert "Dropped 4.jpg: unreadable file (No such file or directory)" in result.stderr
    source = make_source("p", {"kind": "webdataset", "pattern": f"{tmp_path}/shards/*.tar"})
    assert [source[i]["captions"] for i in range(len(source))] == [["a"], ["b", "c"]]


def test_a_text_tower_embeds_the_most_frequent_nouns(tmp_path):
    captions = ["a dog on the grass", "green grass", "a dog", "a tree"]
    samples = [
        (str(i), {"jpg": encode(value=i), "txt": text.encode()}) for i, text in enumerate(captions)
    ]
    raw = write_tar(tmp_path / "raw.tar", samples)
    pretrained = random_pretrained(tiny.get_config().model)
    save_pretrained(tmp_path / "model", pretrained, "safetensors")
    flags = ["--noun_bank=2", f"--noun_bank_tower={tmp_path}/model", "--num_workers=1"]
    main(parse_flags(["prepare", f"--input={raw}", f"--output={tmp_path}/out", *flags]))
    bank = read_noun_bank(tmp_path / "out" / "noun_bank.npz")
    assert bank.nouns == ("dog", "grass")
    texts = ["a photo of a dog.", "a photo of a grass."]
    tokens = make_tokenizer(pretrained.tokenizer, pretrained.model_config.text.context_length)(
        texts
    )
    embed = jax.jit(functools.partial(pretrained.build_model().apply, method="encode_text"))
    expected = np.asarray(embed(pretrained.variables, tokens))
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(bank.embeddings, expected, rtol=0, atol=1e-5)


@pytest.fixture
def options(tmp_path) -> Options:
    """Of 48 photos in 12 shards."""
    (tmp_path / "photos").mkdir()
    rows = ["image,caption"]
    image = photo(700, 900)
    for i in range(48):
        data = simplejpeg.encode_jpeg(np.roll(image, 16 * i, axis=1))
        (tmp_path / "photos" / f"{i}.jpg").write_bytes(data)
        rows.append(f"{i}.jpg,photo {i}")
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    table, images = str(tmp_path / "pairs.csv"), str(tmp_path / "photos")
    return Options(table, str(tmp_path / "whole"), images, samples_per_shard=4)


def arguments_of(options: Options, output: Path | str) -> list[str]:
    return [
        f"--input={options.input}",
        f"--images={options.images}",
        f"--samples_per_shard={options.samples_per_shard}",
        f"--output={output}",
    ]


def test_a_killed_run_goes_on_to_identical_shards(tmp_path, options):
    prepare(options, local_runner(1))
    whole, killed = Path(options.output), tmp_path / "killed"
    arguments = [*arguments_of(options, killed), "--num_workers=2"]
    process = subprocess.Popen(command(*arguments), stderr=subprocess.PIPE)
    while len(list(killed.glob("*.tar"))) < 2:
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.communicate(timeout=PATIENCE)  # the pipe ends with the last of its workers
    finished = {path: os.stat(path).st_mtime_ns for path in killed.glob("*.tar")}
    done = {path.name for path in (killed / ".progress").glob("*.done")}
    assert 2 <= len(finished) < 12
    result = run(*arguments[:-1], "--num_workers=1")
    assert result.returncode == 0, result.stderr
    assert hashes(killed) == hashes(whole)
    assert len(hashes(killed)) == 12
    # A shard that was recorded is not made again.
    for path, made in finished.items():
        if f"{path.stem}.done" in done:
            assert os.stat(path).st_mtime_ns == made
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (whole, killed)]
    assert manifests[0]["shards"] == manifests[1]["shards"]
    assert {shard["file"]: shard["sha256"] for shard in manifests[1]["shards"]} == hashes(whole)
    assert len(list(killed.iterdir())) == 13  # nothing half-made is left


@pytest.mark.slow
def test_beam_makes_the_same_shards(tmp_path, options):
    pytest.importorskip("apache_beam")
    prepare(options, local_runner(1))
    result = run(
        *arguments_of(options, tmp_path / "beam"),
        "--runner=DirectRunner",
        "--",
        "--direct_num_workers=2",
        "--direct_running_mode=multi_processing",
    )
    assert result.returncode == 0, result.stderr
    assert hashes(tmp_path / "beam") == hashes(Path(options.output))
    assert len(hashes(tmp_path / "beam")) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input=none.csv"], "none.csv"),
        (["--input=none/*.tar"], "no file matches"),
        (["--input=a.csv", "--images=none"], "--images=none"),
        (["--input=a.csv", "--images=.", "--tokenizer=none.model"], "--tokenizer=none.model"),
        (["--input=a.csv", "--images=.", "--caption_column=x"], "--caption_column=x: a.csv has"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, arguments, message):
    (tmp_path / "a.csv").write_text("image,caption\na.jpg,b\n")
    result = subprocess.run(
        command(*arguments, "--output=out"),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert result.returncode == 2
    [line] = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not list((tmp_path).glob("out/*.tar"))


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--jpeg_quality=0", "--jpeg_quality: 0: expected 1 to 100"),
        ("--max_side=-1", "--max_side: -1: expected 0"),
        ("--max_side=x", "--max_side: invalid whole_number value: 'x'"),
        ("--duplicates=all", "--duplicates: invalid choice"),
        ("--max_sides=5", "--max_sides=5"),
        ("--noun_bank_tower=x", "--noun_bank_tower=x without --noun_bank"),
    ],
)
def test_wrong_flags_are_named(capsys, flag, message):
    with pytest.raises(SystemExit):
        parse_flags(["prepare", "--input=a.csv", "--output=out", flag])
    assert message in capsys.readouterr().err


def test_flags_of_a_runner_need_one(capsys):
    arguments = ["prepare", "--input=a.csv", "--output=out", "--", "--flink_master=x"]
    with pytest.raises(SystemExit):
        parse_flags(arguments)
    assert "without --runner: --flink_master=x" in capsys.readouterr().err
    flags = parse_flags([*arguments[:3], "--runner=FlinkRunner", *arguments[3:]])
    assert flags.beam_flags == ["--flink_master=x"]


def test_other_options_are_one_line_that_names_the_flag(options):
    prepare(options, local_runner(1))
    result = run(*arguments_of(options, options.output), "--max_side=256")
    assert result.returncode == 2
    [line] = result.stderr.strip().splitlines()
    assert "--max_side=256" in line
    assert "begun with --max_side=512" in line
