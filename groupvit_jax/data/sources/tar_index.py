"""Index of the members of WebDataset tar shards: scanned once per shard, cached, memory-mapped.

A shard is a local file or an object on a store. Its index is a structured array with one entry per
sample: the key and, for each of `PARTS`, byte offset and size of that member (size -1 if the sample
lacks it). It is cached as a plain .npy file whose name contains the shard's size and modification
time, so a changed shard is scanned again. All worker processes share the memory-mapped file.
"""

import glob
import hashlib
import io
import logging
import multiprocessing
import os
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from groupvit_jax.data.storage import objects
from groupvit_jax.data.storage.cache import ObjectCache
from groupvit_jax.data.storage.objects import StoredObject
from groupvit_jax.data.storage.retries import StorageError

logger = logging.getLogger(__name__)

PARTS = ("image", "txt", "json")
# The last is written by `launch.prepare --encoding=pixels`; a plain "npy" may hold anything, such
# as features.
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "rgb.npy")
_PART_OF_EXTENSION = dict.fromkeys(IMAGE_EXTENSIONS, 0) | {"txt": 1, "json": 2}
_BLOCK = 512
# Scanning a few shards is faster than starting a process.
_SHARDS_WORTH_A_PROCESS = 4


def expand_pattern(pattern: str, field: str) -> list[str]:
    """Expands a comma-separated list of brace ({0000..0331}, {a,b}) and glob patterns.

    Args:
      pattern: e.g. "cc3m/{0000..0331}.tar,s3://bucket/cc12m/*.tar".
      field: the configuration field of the pattern, for messages.

    Raises:
      FileNotFoundError: a pattern matches nothing, or a bucket or a listed local shard doesn't
        exist. Listed objects are checked later, by `describe_shards`.
      ValueError: a store can't be listed.
    """
    paths = []
    for item in re.split(r",(?![^{]*\})", pattern):
        expanded = [os.path.expanduser(path) for path in _expand_braces(item.strip()) if path]
        try:
            matches = [match for path in expanded for match in _expand_glob(path)]
        except StorageError as error:
            raise _as_input_error(field, error) from error
        missing = [p for p in matches if not (objects.is_remote(p) or os.path.isfile(p))]
        if not matches or missing:
            raise FileNotFoundError(
                f"{field}={pattern!r}: {item.strip()!r} should name tar shards, but "
                + (f"{missing[0]} does not exist" if missing else "no file matches it")
                + (f" (nor do {len(missing) - 1} others)" if len(missing) > 1 else "")
            )
        paths += matches
    return paths


def _expand_braces(pattern: str) -> list[str]:
    group = re.search(r"\{([^{}]*)\}", pattern)
    if not group:
        return [pattern]
    bounds = re.fullmatch(r"(\d+)\.\.(\d+)", group[1])
    if bounds:
        width = len(bounds[1])
        choices = [f"{i:0{width}d}" for i in range(int(bounds[1]), int(bounds[2]) + 1)]
    else:
        choices = group[1].split(",")
    head, tail = pattern[: group.start()], pattern[group.end() :]
    return [path for choice in choices for path in _expand_braces(head + choice + tail)]


def _expand_glob(path: str) -> list[str]:
    if objects.is_remote(path):
        return objects.expand_glob(path) if glob.has_magic(path) else [path]
    # An existing file whose name contains brackets is not a pattern.
    if glob.has_magic(path) and not os.path.exists(path):
        return sorted(glob.glob(path))
    return [path]


def describe_shards(paths: Sequence[str], field: str) -> list[str | StoredObject]:
    """Looks up shards with a URL on their store; returns the others unchanged.

    Raises:
      FileNotFoundError: there is no such object.
      ValueError: it can't be looked up.
    """
    urls = [path for path in paths if objects.is_remote(path)]
    try:
        described = iter(objects.describe(urls))
    except StorageError as error:
        raise _as_input_error(field, error) from error
    return [next(described) if objects.is_remote(path) else path for path in paths]


def _as_input_error(field: str, error: StorageError) -> Exception:
    kind = FileNotFoundError if isinstance(error.__cause__, FileNotFoundError) else ValueError
    return kind(f"{field}: {error}")


def load_indices(
    shards: Sequence[str | StoredObject], index_dir: str = "", cache: ObjectCache | None = None
) -> list[Path]:
    """Returns the index file of each shard; scans shards without one in parallel.

    Args:
      shards: paths of tar files, or objects.
      index_dir: folder of the cache; by default a hidden folder beside the shards. If it can't be
        written, the user's cache folder is used instead and logged; for objects, that is the
        default. A URL is a folder on a store from which other machines can read the indices.
      cache: keeps scanned objects, so that they are downloaded only once.

    Raises:
      StorageError: an object can't be read.
    """
    shared = index_dir if objects.is_remote(index_dir) else ""
    if shared:
        index_dir = ""
        _fetch_indices(shards, shared)
    index_files = [_find_cached(shard, index_dir) for shard in shards]
    missing = [i for i, file in enumerate(index_files) if file is None]
    if missing:
        logger.info("Indexing %d of %d tar shards (once)", len(missing), len(shards))
        writable: dict[Path, Path] = {}
        targets = [_writable_target(shards[i], index_dir, writable) for i in missing]
        _build_all([shards[i] for i in missing], targets, cache)
        for i, target in zip(missing, targets, strict=True):
            index_files[i] = target
            if shared:
                objects.write_object(_shared_url(shards[i], shared), target.read_bytes())
    return [file for file in index_files if file is not None]


def _fetch_indices(shards: Sequence[str | StoredObject], shared: str) -> None:
    """Copies indices from a store that are missing in the user's cache."""
    missing = [shard for shard in shards if _find_cached(shard, "") is None]
    contents = objects.read_objects([_shared_url(shard, shared) for shard in missing])
    writable: dict[Path, Path] = {}
    for shard, content in zip(missing, contents, strict=True):
        if content is not None:
            _write(_writable_target(shard, "", writable), partial(_save_bytes, content))


def _save_bytes(content: bytes, file: Any) -> None:
    file.write(content)


def _shared_url(shard: str | StoredObject, shared: str) -> str:
    parent, _ = _cache_folders(shard, "/")
    return f"{shared.rstrip('/')}/{parent.name}/{_cache_name(shard)}"


def _build_all(
    shards: Sequence[str | StoredObject], targets: Sequence[Path], cache: ObjectCache | None
) -> None:
    num_processes = min(os.cpu_count() or 1, len(shards) // _SHARDS_WORTH_A_PROCESS)
    if num_processes <= 1:
        for shard, target in zip(shards, targets, strict=True):
            _build(shard, target, cache)
        return
    # Spawned, not forked: a fork would copy locks held by JAX's threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, mp_context=context) as pool:
        list(pool.map(_build, shards, targets, [cache] * len(shards), chunksize=1))


def _build(shard: str | StoredObject, target: Path, cache: ObjectCache | None) -> None:
    local = cache.fetch(shard) if cache and isinstance(shard, StoredObject) else None
    index = scan(str(local) if local else shard)
    for stale in target.parent.glob(glob.escape(_cache_prefix(shard)) + "*.npy"):
        stale.unlink(missing_ok=True)
    _write(target, lambda file: np.save(file, index))


def _write(target: Path, save: Callable[[Any], Any]) -> None:
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
        save(file)
    os.chmod(file.name, 0o644)  # readable for others who use the same shards
    os.replace(file.name, target)


def _cache_prefix(shard: str | StoredObject) -> str:
    if isinstance(shard, StoredObject):  # the name comes from a store
        return _hash(shard.url) + "."
    return os.path.basename(shard) + "."


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _cache_name(shard: str | StoredObject) -> str:
    if isinstance(shard, StoredObject):
        return f"{_cache_prefix(shard)}{shard.size}-{_hash(shard.version)}.npy"
    stat = os.stat(shard)
    return f"{_cache_prefix(shard)}{stat.st_size}-{stat.st_mtime_ns}.npy"


def _cache_folders(shard: str | StoredObject, index_dir: str) -> tuple[Path, Path]:
    """Returns the requested folder and the fallback."""
    if isinstance(shard, StoredObject):
        parent = shard.url.rpartition("/")[0]
    else:
        parent = str(Path(shard).resolve().parent)
    folder_id = _hash(parent)
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    fallback = user_cache / "groupvit_jax" / "index" / folder_id
    if index_dir:
        return Path(index_dir).expanduser() / folder_id, fallback
    beside = fallback if isinstance(shard, StoredObject) else Path(parent) / ".groupvit_index"
    return beside, fallback


def _find_cached(shard: str | StoredObject, index_dir: str) -> Path | None:
    files = [folder / _cache_name(shard) for folder in _cache_folders(shard, index_dir)]
    return next((file for file in files if _is_readable_index(file)), None)


def _is_readable_index(file: Path) -> bool:
    try:
        np.load(file, mmap_mode="r")
    except FileNotFoundError:
        return False
    except (OSError, ValueError, EOFError) as error:
        logger.warning("%s: unreadable tar index (%s), built anew", file, error)
        return False
    return True


def _writable_target(shard: str | StoredObject, index_dir: str, writable: dict[Path, Path]) -> Path:
    """Returns where to write the index; `writable` caches the choice per folder."""
    wanted, fallback = _cache_folders(shard, index_dir)
    if wanted not in writable:
        try:
            _check_writable(wanted)
            writable[wanted] = wanted
        except OSError as error:
            logger.warning("Tar indices are cached in %s, not %s: %s", fallback, wanted, error)
            _check_writable(fallback)
            writable[wanted] = fallback
    return writable[wanted] / _cache_name(shard)


def _check_writable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def scan(shard: str | StoredObject) -> np.ndarray:
    """Scans a tar file's headers and returns its index (see the module's docstring).

    Objects are streamed, because three small sequential requests per sample would take much longer
    than transferring the bytes in between.

    Members are grouped by WebDataset's rule: adjacent members whose paths agree up to the first dot
    of the file name form a sample. From a truncated archive, complete members before the break are
    kept, and an entry without members stands for the lost rest, so that it is counted.
    """
    with _open(shard) as file:
        members, break_at = _complete_members(file, file.seek(0, os.SEEK_END))
    samples = list(_group(members))
    if break_at is not None:
        samples.append((_break_key(break_at), np.zeros(3, np.int64), np.full(3, -1, np.int64)))
    key_bytes = max([len(key) for key, _, _ in samples], default=1)
    dtype = np.dtype([("key", f"S{key_bytes}"), ("offset", "<i8", 3), ("size", "<i8", 3)])
    return np.array(samples, dtype)


def _open(shard: str | StoredObject) -> io.BufferedReader:
    if isinstance(shard, StoredObject):
        return io.BufferedReader(objects.ObjectReader(shard), _BLOCK)
    return open(shard, "rb")


def _complete_members(
    file: io.BufferedReader, file_size: int
) -> tuple[list[tarfile.TarInfo], int | None]:
    """Returns the complete members and, for a truncated archive, the byte where it breaks off."""
    members: list[tarfile.TarInfo] = []
    end = 0  # end of the last complete member, where the next header or the closing zeros should be
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                data_bytes = member.size if member.isreg() else 0
                # tarfile accepts a negative size and would then seek backwards in an endless loop.
                if data_bytes < 0 or member.offset_data + data_bytes > file_size:
                    return members, member.offset
                end = member.offset_data + -(-data_bytes // _BLOCK) * _BLOCK
                if member.isreg():
                    members.append(member)
    except (tarfile.TarError, ValueError):  # ValueError: numbers in extended headers
        return members, end
    # tarfile treats any unreadable header but the first as the end of the archive.
    file.seek(end)
    closing = file.read(_BLOCK)
    return members, None if closing == bytes(_BLOCK) else min(end, file_size)


def _group(
    members: Sequence[tarfile.TarInfo],
) -> Iterator[tuple[bytes, np.ndarray, np.ndarray]]:
    current: tuple[bytes, np.ndarray, np.ndarray] | None = None
    for member in members:
        folder, _, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        part = _PART_OF_EXTENSION.get(extension.lower())
        if part is None:
            continue
        key = os.path.join(folder, stem).encode("utf-8", "surrogateescape")
        if current is None or current[0] != key:
            if current is not None:
                yield current
            current = (key, np.zeros(3, np.int64), np.full(3, -1, np.int64))
        if current[2][part] < 0:
            current[1][part], current[2][part] = member.offset_data, member.size
    if current is not None:
        yield current


def _break_key(offset: int) -> bytes:
    return b"(breaks off at byte %d)" % offset


def break_of(index: np.ndarray) -> int | None:
    """Returns the byte at which the indexed archive is truncated; None if it is complete."""
    if len(index) and (index[-1]["size"] < 0).all():
        return int(index[-1]["key"].split()[-1][:-1])
    return None


def num_complete(index: np.ndarray) -> int:
    """Returns the number of samples with an image and something that may hold a caption."""
    present = index["size"] >= 0
    return int((present[:, 0] & present[:, 1:].any(axis=1)).sum())
