"""The manifest of a checkpoint's step: size and checksum of every file, by which damage is found.

    STEP/MANIFEST.json    {"files": {"model/_METADATA": {"size": 1093, "xxh3": "0f1e..."}, ...}}

It is written after all other files and before the step gets its final name, so a step without it
is not complete. Paths are relative to the step: a copied or renamed step stays whole.

The checksum is xxHash: it is as fast as memory, and the verification of a step is to cost a few per
cent of a restore (`benchmarks/verify.py`); zlib's CRC-32 takes several times as long.
"""

import json
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import xxhash

from groupvit_jax.runs.files import read_json, write_json

MANIFEST = "MANIFEST.json"
# Orbax's metadata of a step, and its success file. It writes both again after the manifest: the
# time of the commit into the first, the same text into the second, which nothing reads.
STEP_METADATA, _COMMIT_SUCCESS = "_CHECKPOINT_METADATA", "commit_success.txt"
_COMMIT_TIME = "commit_timestamp_nsecs"
_CHUNK_BYTES = 1 << 20
# A step has tens of files, read from a disk or a network that answers several at once.
_THREADS = 4


class Entry(NamedTuple):
    """Size in bytes and checksum (XXH3, 64 bits, hexadecimal) of a file."""

    size: int
    xxh3: str


def write_manifest(step: Path) -> None:
    """Write the manifest of a step's folder, whose files are complete."""
    files = [path for path in step.rglob("*") if path.is_file()]
    names = sorted(path.relative_to(step).as_posix() for path in files)
    names = [name for name in names if name not in (MANIFEST, _COMMIT_SUCCESS)]
    with ThreadPoolExecutor(_THREADS) as threads:
        entries = threads.map(lambda name: _entry(step / name)._asdict(), names)
        write_json(step / MANIFEST, {"files": dict(zip(names, entries, strict=True))})


def find_damage(step: Path, items: Collection[str] | None = None) -> str | None:
    """Return which file of a step is damaged and how; None for a whole step.

    Args:
      step: the folder of a step.
      items: the items whose content is compared; of all other files only the size. None for all.
    """
    try:
        wanted = _read_manifest(step)
    except (OSError, ValueError) as error:
        return _one_line(error)

    def damage(name: str) -> str | None:
        path, entry = step / name, wanted[name]
        try:
            # A step's own files are small, and Orbax reads them whatever item it restores.
            if items is None or "/" not in name or name.split("/")[0] in items:
                found = _entry(path)
            else:
                found = Entry(path.stat().st_size, entry.xxh3)
        except (OSError, ValueError) as error:
            return _one_line(error)
        if found.size != entry.size:
            return f"{path}: {found.size} bytes found, expected {entry.size}"
        return None if found == entry else f"{path}: differs from its checksum in {MANIFEST}"

    with ThreadPoolExecutor(_THREADS) as threads:
        return next(filter(None, threads.map(damage, wanted)), None)


def _read_manifest(step: Path) -> dict[str, Entry]:
    path = step / MANIFEST
    try:
        files = read_json(path)["files"]
        return {
            name: Entry(int(entry["size"]), str(entry["xxh3"])) for name, entry in files.items()
        }
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not a manifest of files with size and xxh3") from error


def _entry(path: Path) -> Entry:
    """Return size and checksum of a file; ValueError if it is Orbax's metadata and no JSON."""
    checksum = xxhash.xxh3_64()
    if path.name == STEP_METADATA:
        # The commit's time comes after the manifest, and Orbax may write the keys in another order.
        content = json.dumps(read_json(path) | {_COMMIT_TIME: None}, sort_keys=True).encode()
        checksum.update(content)
        return Entry(len(content), checksum.hexdigest())
    size, buffer = 0, memoryview(bytearray(_CHUNK_BYTES))
    # Not mapped into memory: an error of the disk would then kill the process.
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            checksum.update(buffer[:count])
            size += count
    return Entry(size, checksum.hexdigest())


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())
