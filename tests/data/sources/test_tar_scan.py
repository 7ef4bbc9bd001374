import gzip
import io
import resource
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from groupvit_jax.data.sources import counts, tar_scan
from groupvit_jax.data.sources.pairs import WebDatasetSource, make_source
from tests.data.shard_files import encode, write_pairs, write_tar
from tests.waiting import PATIENCE

LINK, PIPE = (tarfile.LNKTYPE, "0.jpg"), (tarfile.FIFOTYPE, "")


@pytest.fixture(autouse=True)
def _user_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user_cache"))


def write_members(path, members, format=tarfile.GNU_FORMAT) -> str:
    """Writes members as (name, bytes or a type and a link)."""
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                member.type, member.linkname = content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return str(path)


def outcomes(path) -> dict[str, int]:
    """Files by outcome, after checking that they add up."""
    found = counts.add_up([tar_scan.scan(str(path)).counts])
    rows = {"used": found["written"].get("files", 0)}
    for name in ("dropped", "unmatched"):
        rows |= {reason: f.get("files", 0) for reason, f in found.get(name, {}).items()}
    assert sum(rows.values()) == found["read"].get("files", 0)
    return rows


PAIR = [("0.jpg", b"-"), ("0.txt", b"a")]


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (PAIR, {"used": 2}),
        ([("./a.b/0.x.jpg", b"-"), *PAIR], {"used": 2, "ending that is not read": 1}),
        ([("0.input.jpg", b"-"), ("0.output.txt", b"-")], {"ending that is not read": 2}),
        ([*PAIR, *PAIR], {"used": 2, "repeated key": 2}),
        ([*PAIR, ("0.png", b"-")], {"used": 2, "repeated key": 1}),
        ([*PAIR, ("0.cls", b"3")], {"used": 2, "ending that is not read": 1}),
        (
            [*PAIR, ("1.jpg", LINK), ("1.txt", b"a")],
            {"used": 2, "no image": 1, "hard or symbolic link": 1},
        ),
        ([*PAIR, ("p.jpg", PIPE)], {"used": 2, "sparse or special file": 1}),
        (
            [*PAIR, (".jpg", b"-"), ("._0.jpg", b"-"), ("README", b"-")],
            {"used": 2, "no key or no ending in the name": 3},
        ),
        (
            [("a/0.jpg", b"-"), ("b/0.txt", b"-"), ("a/1.jpg", b"-")],
            {"image and caption in different folders": 2, "no caption": 1},
        ),
        (
            [("0.jpg", b"-"), ("1.jpg", b"-"), ("0.txt", b"-"), ("1.txt", b"-")],
            {"image and caption not side by side in the tar": 4},
        ),
        ([("d", (tarfile.DIRTYPE, "")), *PAIR], {"used": 2}),
        ([*PAIR, ("a\nb.cls", b"-")], {"used": 2, "ending that is not read": 1}),
        ([*PAIR, ("x" * 2000 + ".jpg", b"-")], {"used": 2, "name longer than 1024 bytes": 1}),
    ],
)
@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_member_has_an_outcome(tmp_path, members, expected, format):
    path = write_members(tmp_path / "0.tar", members, format)
    assert {"used": 0} | expected == outcomes(path)


def test_training_logs_what_it_does_not_use(tmp_path, caplog):
    caplog.set_level("INFO")
    members = [("0.jpg", encode()), ("0.txt", b"a"), ("0.cls", b"3")]
    path = write_members(tmp_path / "0.tar", members)
    for _ in range(2):  # scanned, then from the index
        caplog.clear()
        WebDatasetSource([path])
        [record] = [r for r in caplog.records if "files used" in r.getMessage()]
        assert record.levelname == "WARNING"
        assert "pattern: 2 of 3 files used, in 1 pairs of 1 shards" in record.getMessage()
        assert "1 x ending that is not read (0.cls)" in record.getMessage()


def test_training_without_a_pair_names_what_was_found(tmp_path):
    (tmp_path / "0.tar").write_bytes(
        gzip.compress(Path(write_pairs(tmp_path / "x", [0])).read_bytes())
    )
    fields = {"kind": "webdataset", "pattern": f"{tmp_path}/0.tar"}
    with pytest.raises(ValueError, match=r"x\.pattern: no pair in 1 shards.*compressed with gzip"):
        make_source("x", fields)
    write_tar(tmp_path / "0.tar", [("0", {"input.jpg": b"-", "output.txt": b"-"})])
    with pytest.raises(ValueError, match=r"2 x ending that is not read \(0\.input\.jpg; "):
        make_source("x", fields)


def header(kind: bytes, content: bytes) -> bytes:
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = kind, len(content)
    padding = bytes(-len(content) % 512)
    return member.tobuf(tarfile.GNU_FORMAT) + content + padding


def record(key: str, value: str) -> bytes:
    text = f" {key}={value}\n"
    length = len(text) + len(str(len(text)))
    return f"{length if len(str(length)) + len(text) == length else length + 1}{text}".encode()


def test_memory_does_not_follow_what_headers_say(tmp_path):
    pairs = Path(write_pairs(tmp_path / "pairs.tar", range(20))).read_bytes()
    fields = b"".join(record(f"k{i}", "v") for i in range(9000))
    files = {
        "long links": header(tarfile.GNUTYPE_LONGNAME, b"0.jpg\0") * 2000,
        "extended headers": header(tarfile.XHDTYPE, record("path", "0.jpg")) * 2000,
        "a vast name": header(tarfile.GNUTYPE_LONGNAME, b"x" * 2**27),
        "a vast number": header(tarfile.XHDTYPE, b"9" * 60_000) * 700,
        "many global fields": header(tarfile.XGLTYPE, fields),
    }
    for name, start in files.items():
        path = tmp_path / f"{name}.tar"
        path.write_bytes(start + pairs)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert "lost where a tar breaks off" in outcomes(path), name
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, name


def test_one_long_key_is_left_out_of_the_index(tmp_path):
    path = write_members(tmp_path / "0.tar", [*PAIR, ("k" * 60_000 + ".jpg", b"-")])
    assert tar_scan.scan(path).index["key"].dtype.itemsize <= tar_scan.MAX_KEY_BYTES


SCRIPT = """
import sys
from groupvit_jax.data.sources.pairs import WebDatasetSource
print("started")
print(len(WebDatasetSource(sys.argv[1:])))
"""


def test_a_plain_script_opens_many_shards(tmp_path):
    shards = [write_pairs(tmp_path / f"{i}.tar", range(3)) for i in range(8)]
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), *shards]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, env={"PYTHONPATH": "."}
    )
    assert result.stdout.split() == ["started", "24"], result.stderr
