"""Local copies of what lies on a bucket, for commands that only read it."""

import atexit
import functools
import hashlib
import shutil
import tempfile
from pathlib import Path

from groupvit_jax.data.storage import objects
from groupvit_jax.data.storage.objects import StoredObject
from groupvit_jax.data.storage.retries import StorageError
from groupvit_jax.runs.bucket.mirror import download_steps, fetch
from groupvit_jax.runs.checkpoints import INFERENCE_ITEMS, MODEL
from groupvit_jax.runs.layout import CHECKPOINTS, CONFIG_FILE, METRICS_FILE, SWEEP_FILE, TRIAL_FILE
from groupvit_jax.runs.manifest import MANIFEST

_SMALL_FILES = (CONFIG_FILE, METRICS_FILE, TRIAL_FILE, SWEEP_FILE)
_Listing = tuple[tuple[str, StoredObject], ...]


def local_copy(path: Path | str) -> Path:
    """Return a local path of what is read; of a URL, a copy that lasts as long as the process.

    Of a run or a step only the parameters are downloaded, of any other folder or file everything.
    The bucket is listed at each call: a run that has gone on since the last one is copied anew.

    Raises:
      FileNotFoundError: there is nothing at the URL.
      ValueError: the store can't be reached.
    """
    if not objects.is_remote(str(path)):
        return Path(path)
    url = str(path).rstrip("/")
    try:
        return _copied(url, _listed(url))
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise FileNotFoundError(f"{url}: no such file or folder") from error
        raise ValueError(f"can't be read: {error}") from error


def local_runs(url: str) -> Path:
    """Return a folder with the configuration and the metrics of a run, or of the runs in a folder.

    Raises:
      ValueError: the store can't be reached.
    """
    url = url.rstrip("/")
    try:
        files = {
            name: stored
            for name, stored in objects.find_objects(url).items()
            if name.count("/") < 2 and name.rpartition("/")[2] in _SMALL_FILES
        }
        folder = _place(url, tuple(files.items()))
        fetch(folder, files)
    except StorageError as error:
        raise ValueError(f"can't be read: {error}") from error
    return folder


def find_folders(url: str) -> list[str]:
    """Return the URLs that a glob matches.

    Raises:
      ValueError: the store can't be reached.
    """
    try:
        return objects.expand_glob(url)
    except StorageError as error:
        raise ValueError(f"can't be read: {error}") from error


def _listed(url: str) -> _Listing:
    """Return the objects below a URL, or the one at it by the name ""."""
    found = objects.find_objects(url)
    return tuple(sorted(found.items())) or (("", objects.describe([url])[0]),)


@functools.cache
def _copied(url: str, listing: _Listing) -> Path:
    found = dict(listing)
    place = _place(url, listing)
    if "" in found:
        objects.download(found[""], place)
        return place
    if MANIFEST in found:
        # As if it were the only step of a run, whatever its name.
        files = {f"{place.name}/{name}": stored for name, stored in found.items()}
        return _with_steps(place.parent, {place.name: files}) / place.name
    is_run = any(name.startswith(f"{CHECKPOINTS}/") for name in found)
    prefix = f"{CHECKPOINTS}/" if is_run else ""
    steps: dict[str, dict[str, StoredObject]] = {}
    for name, stored in found.items():
        step, _, rest = name.removeprefix(prefix).partition("/")
        if name.startswith(prefix) and rest and step.isdecimal():
            steps.setdefault(step, {})[name] = stored
    if any(f"/{MODEL}/" in name for files in steps.values() for name in files):
        return _with_steps(place, steps)
    fetch(place, found)
    return place


def _with_steps(folder: Path, steps: dict[str, dict[str, StoredObject]]) -> Path:
    download_steps(folder, steps, INFERENCE_ITEMS)
    return folder


def _place(url: str, listing: _Listing) -> Path:
    """Return where the copy lies; its end is that of the URL, which names runs."""
    content = hashlib.sha256(repr(listing).encode()).hexdigest()[:16]
    return _temporary() / content / url.partition("://")[2]


@functools.cache
def _temporary() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="groupvit-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
