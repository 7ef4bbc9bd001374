"""Local copies of what lies on a bucket, for commands that only read it."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from groupvit_jax.data.storage import objects
from groupvit_jax.data.storage.retries import StorageError
from groupvit_jax.runs.bucket.mirror import download_steps, fetch
from groupvit_jax.runs.checkpoints import INFERENCE_ITEMS, MODEL
from groupvit_jax.runs.layout import CHECKPOINTS, CONFIG_FILE, METRICS_FILE, SWEEP_FILE, TRIAL_FILE
from groupvit_jax.runs.manifest import MANIFEST

_SMALL_FILES = (CONFIG_FILE, METRICS_FILE, TRIAL_FILE, SWEEP_FILE)


def local_checkpoint(path: Path | str) -> Path:
    """Return a local path of a checkpoint; of a URL, a copy that lasts as long as the process.

    Of a run or a step only the parameters are downloaded, of an export or a file everything.

    Raises:
      FileNotFoundError: there is nothing at the URL.
      ValueError: the store can't be reached.
    """
    if not objects.is_remote(str(path)):
        return Path(path)
    url = str(path).rstrip("/")
    try:
        return _copied(url)
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
            name: size
            for name, size in objects.find_objects(url).items()
            if name.count("/") < 2 and name.rpartition("/")[2] in _SMALL_FILES
        }
        fetch(url, _place(url), files)
    except StorageError as error:
        raise ValueError(f"can't be read: {error}") from error
    return _place(url)


@functools.cache
def _copied(url: str) -> Path:
    found = objects.find_objects(url)
    place = _place(url)
    if not found:
        [stored] = objects.describe([url])
        objects.download(url, place, stored.size)
        return place
    if MANIFEST in found:
        # As if it were the only step of a run, whatever its name.
        steps = {place.name: {f"{place.name}/{name}": size for name, size in found.items()}}
        return _with_steps(url.rpartition("/")[0], place.parent, steps) / place.name
    inner = "" if any(name.startswith(f"{CHECKPOINTS}/") for name in found) else f"{CHECKPOINTS}/"
    steps = {}
    for name, size in found.items():
        step, _, rest = f"{inner}{name}".removeprefix(f"{CHECKPOINTS}/").partition("/")
        if rest and step.isdecimal():
            steps.setdefault(step, {})[name] = size
    if any(f"/{MODEL}/" in name for files in steps.values() for name in files):
        return _with_steps(url, place, steps)
    fetch(url, place, found)
    return place


def _with_steps(url: str, folder: Path, steps: dict[str, dict[str, int]]) -> Path:
    download_steps(url, folder, steps, INFERENCE_ITEMS)
    return folder


def _place(url: str) -> Path:
    """Return where the copy of a URL lies; its end is that of the URL, which names runs."""
    return _temporary() / url.partition("://")[2]


@functools.cache
def _temporary() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="groupvit-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
