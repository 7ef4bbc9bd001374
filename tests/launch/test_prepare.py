import subprocess
import sys

from groupvit_jax.data.sources import make_source
from tests.data.shard_files import encode


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "launch.prepare", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_captions_and_photos_become_a_source(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(3):
        (tmp_path / "photos" / f"{i}.jpg").write_bytes(encode(value=i))
    (tmp_path / "pairs.csv").write_text("image,caption\n0.jpg,a\n1.jpg,b\n1.jpg,c\n4.jpg,d\n")
    arguments = [f"--input={tmp_path}/pairs.csv", f"--images={tmp_path}/photos"]
    result = run(*arguments, f"--output={tmp_path}/shards/pairs-{{:05d}}.tar")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == (
        "3 images = 2 written in 1 shards + 1 dropped (1 unreadable files); "
        "4 captions = 3 written + 1 blank or of dropped images"
    )
    assert "Dropped 4.jpg: No such file or directory" in result.stderr
    source = make_source("p", {"kind": "webdataset", "pattern": f"{tmp_path}/shards/pairs-*.tar"})
    assert [source[i]["captions"] for i in range(len(source))] == [["a"], ["b", "c"]]


def test_wrong_input_is_one_line(tmp_path):
    result = run(
        f"--input={tmp_path}/none.csv", f"--images={tmp_path}", f"--output={tmp_path}/{{}}.tar"
    )
    assert result.returncode == 1
    [line] = result.stderr.strip().splitlines()
    assert line.startswith("launch.prepare: ")
    assert "none.csv" in line
