"""Index of the members of WebDataset tar shards: scanned once per shard, cached, memory-mapped.

A shard is a local file or an object on a store. Its index is a structured array with one entry per
sample: the key and, for each of `PARTS`, byte offset and size of that member (size -1 if the sample
lacks it). It is cached as a plain .npy file whose name contains the shard's size and modification
time, so a changed shard is scanned again. All worker processes share the memory-mapped file. The
counts of the shard's members follow the array as JSON, which NumPy ignores.
"""

import functools
import glob
import hashlib
import json
import logging
import multiprocessing
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from groupvit_jax.data.sources.patterns import input_error
from groupvit_jax.data.sources.tar_scan import Scan, scan
from groupvit_jax.data.storage import objects
from groupvit_jax.data.storage.cache import ObjectCache
from groupvit_jax.data.storage.objects import StoredObject
from groupvit_jax.data.storage.retries import StorageError
from groupvit_jax.processes import hidden_main

logger = logging.getLogger(__name__)

# Scanning a few shards is faster than starting a process.
_SHARDS_WORTH_A_PROCESS = 4
# Of the files' names: an index of another version is built anew.
_VERSION = 2
# NumPy parses a file's header with `ast`, which threads of Python before 3.11.8 and 3.12.2 may not
# do at once ("AST constructor recursion depth mismatch", python/cpython#106905).
_parsing = threading.Lock()


def describe_shards(paths: Sequence[str], field: str) -> list[str | StoredObject]:
    """Look up shards with a URL on their store; return the others unchanged.

    Raises:
      FileNotFoundError: there is no such object.
      ValueError: it can't be looked up.
    """
    urls = [path for path in paths if objects.is_remote(path)]
    try:
        described = iter(objects.describe(urls))
    except StorageError as error:
        raise input_error(field, error) from error
    return [next(described) if objects.is_remote(path) else path for path in paths]


def load_indices(
    shards: Sequence[str | StoredObject], index_dir: str = "", cache: ObjectCache | None = None
) -> list[Path]:
    """Return the index file of each shard; scan shards without one in parallel.

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
    """Copy indices from a store that are missing in the user's cache."""
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
        with hidden_main():
            built = pool.map(_build, shards, targets, [cache] * len(shards), chunksize=1)
        list(built)


def _build(shard: str | StoredObject, target: Path, cache: ObjectCache | None) -> None:
    local = cache.fetch(shard) if cache and isinstance(shard, StoredObject) else None
    scanned = scan(str(local) if local else shard)
    _write(target, partial(_save_scan, scanned))
    # Of the shard as it was before it changed. Never the target: another process that started with
    # this one may have written it, and be about to open it.
    for stale in target.parent.glob(glob.escape(_cache_prefix(shard)) + "*.npy"):
        if stale != target:
            stale.unlink(missing_ok=True)


def _save_scan(scanned: Scan, file: Any) -> None:
    np.save(file, scanned.index)
    file.write(json.dumps(scanned.counts).encode())


@functools.cache
def open_index(file: Path) -> np.ndarray:
    """Map an index file; every thread of a process shares the mapping."""
    return np.asarray(_map(file))  # np.memmap's indexing is slow


def read_counts(file: Path) -> dict[str, Any]:
    """Return the counts of an indexed shard; see `tar_scan.Scan`.

    Raises:
      OSError, ValueError: the file is damaged.
    """
    index = _map(file)
    if index.dtype.names != ("key", "offset", "size"):
        raise ValueError(f"fields {index.dtype.names}, expected key, offset, size")
    with open(file, "rb") as content:
        content.seek(index.offset + index.nbytes)
        # Last in the file: if the counts can be parsed, nothing is cut off.
        return json.loads(content.read())


def _map(file: Path) -> np.memmap:
    with _parsing:
        return np.load(file, mmap_mode="r")


def _write(target: Path, save: Callable[[Any], Any]) -> None:
    # Under another name first: other processes map the file as soon as it has its own.
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
        return f"{_cache_prefix(shard)}{shard.size}-{_hash(shard.version)}.{_VERSION}.npy"
    stat = os.stat(shard)
    return f"{_cache_prefix(shard)}{stat.st_size}-{stat.st_mtime_ns}.{_VERSION}.npy"


def _cache_folders(shard: str | StoredObject, index_dir: str) -> tuple[Path, Path]:
    """Return the requested folder and the fallback."""
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
        read_counts(file)
    except FileNotFoundError:
        return False
    except (OSError, ValueError, EOFError) as error:
        logger.warning("%s: unreadable tar index (%s), built anew", file, error)
        return False
    return True


def _writable_target(shard: str | StoredObject, index_dir: str, writable: dict[Path, Path]) -> Path:
    """Return where to write the index; `writable` caches the choice per folder."""
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
