import json
import shutil

import pytest

from groupvit_jax.runs.manifest import MANIFEST, STEP_METADATA, find_damage, write_manifest


@pytest.fixture
def step(tmp_path):
    folder = tmp_path / "7"
    for name, content in {
        STEP_METADATA: b'{"commit_timestamp_nsecs": null, "metrics": {}}',
        "commit_success.txt": b"",
        "model/_METADATA": b"{}",
        "model/d/0a": bytes(range(256)) * 10_000,  # more than is read at once
        "training/d/0b": b"moments",
        "training/empty": b"",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    write_manifest(folder)
    return folder


def flip(path, byte):
    content = bytearray(path.read_bytes())
    content[byte] ^= 4
    path.write_bytes(content)


def test_a_whole_step_is_whole_also_renamed_and_copied(step, tmp_path):
    assert find_damage(step) is None
    shutil.copytree(step, tmp_path / "best")
    assert find_damage(tmp_path / "best") is None


def test_the_manifest_holds_paths_within_the_step(step):
    files = json.loads((step / MANIFEST).read_text())["files"]
    assert list(files) == sorted(files)
    assert "model/d/0a" in files
    assert files["training/d/0b"]["size"] == 7


@pytest.mark.parametrize("byte", [0, 2_000_000, -1])
def test_a_flipped_bit_is_found_and_its_file_named(step, byte):
    flip(step / "model/d/0a", byte)
    assert find_damage(step) == f"{step}/model/d/0a: differs from its checksum in {MANIFEST}"


@pytest.mark.parametrize("name", ["model/d/0a", "training/d/0b", STEP_METADATA, MANIFEST])
def test_truncated_and_missing_files_are_named_whatever_is_read(step, name):
    content = (step / name).read_bytes()
    (step / name).write_bytes(content[: len(content) // 2])
    assert find_damage(step, ("model",)).startswith(f"{step}/{name}: ")
    (step / name).unlink()
    assert find_damage(step, ("model",)).startswith(f"{step}/{name}: ")
    (step / name).mkdir()
    assert find_damage(step, ("model",)).startswith(f"{step}/{name}: ")


def test_only_the_items_asked_for_are_compared(step):
    flip(step / "training/d/0b", 0)
    assert find_damage(step, ("model",)) is None
    assert find_damage(step, ("training",)) is not None
    assert find_damage(step) is not None


def test_what_orbax_writes_after_the_manifest_is_no_damage(step):
    (step / STEP_METADATA).write_text('{"metrics": {}, "commit_timestamp_nsecs": 123}')
    (step / "commit_success.txt").write_text("committed")
    assert find_damage(step) is None
    (step / STEP_METADATA).write_text('{"metrics": {"a": 1}, "commit_timestamp_nsecs": 123}')
    assert find_damage(step) is not None


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"files": 1}', '{"files": {"a": 1}}', "\0", '{"files": {"a": {}}}']
)
def test_a_foreign_manifest_is_one_line(step, text):
    (step / MANIFEST).write_text(text)
    damage = find_damage(step)
    assert damage.startswith(f"{step}/{MANIFEST}: ")
    assert "\n" not in damage
