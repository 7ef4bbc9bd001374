"""Output folders on a bucket: written locally, uploaded at the end."""

import contextlib
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

from groupvit_jax.data.storage import objects
from groupvit_jax.data.storage.retries import StorageError
from groupvit_jax.runs.bucket.mirror import THREADS, fetch, state_of

# Larger files at the URL are known to be there and not read: exports, not results.
_READ_BYTES = 1 << 24


@contextlib.contextmanager
def output_folder(path: Path | str) -> Iterator[Path]:
    """Context of the local folder to write to, which may be missing; of a URL, a temporary one.

    That holds the files that are at the URL already, empty ones in place of large files and of
    those in folders. At the end, also after an error, process 0 uploads what was written.

    Raises:
      FileExistsError: the path is a file.
      ValueError: the bucket can't be read or written.
    """
    if not objects.is_remote(str(path)):
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise FileExistsError(f"--output={path}: a file found, expected a folder")
        yield path
        return
    url = str(path).rstrip("/")
    with tempfile.TemporaryDirectory(prefix="groupvit-") as folder, _naming_output(url):
        found = objects.find_objects(url)
        read = {n: s for n, s in found.items() if "/" not in n and s.size <= _READ_BYTES}
        fetch(Path(folder), read)
        for name in found.keys() - read.keys():
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).touch()
        before = {path: state_of(path) for path in _files(folder)}
        try:
            yield Path(folder)
        finally:
            changed = [path for path in _files(folder) if state_of(path) != before.get(path)]
            if jax.process_index() == 0:
                _upload(Path(folder), changed, url)


def _upload(folder: Path, paths: list[Path], url: str) -> None:
    def upload(path: Path) -> None:
        objects.upload(path, f"{url}/{path.relative_to(folder).as_posix()}")

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(upload, paths))


def _files(folder: str) -> list[Path]:
    return [path for path in Path(folder).rglob("*") if path.is_file()]


@contextlib.contextmanager
def _naming_output(url: str) -> Iterator[None]:
    """Raise a store's errors in the block as a ValueError that names the flag."""
    try:
        yield
    except StorageError as error:
        raise ValueError(f"--output={url}: can't be read or written ({error})") from error
