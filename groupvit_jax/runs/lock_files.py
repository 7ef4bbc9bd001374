"""Where the files of a workdir's lock are: in a folder, or on a bucket.

Both create a file exclusively: of two runs that create one of the same name, one succeeds.
"""

import json
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from groupvit_jax.data.storage import objects

_PATTERN = "run-[0-9]*.lock"


@runtime_checkable
class LockFiles(Protocol):
    """Small files by name."""

    def names(self) -> list[str]:
        """Return the names of the locks, sorted."""

    def read(self, name: str) -> dict[str, Any]:
        """Return a lock's content; {} if it is gone, or created and not written yet."""

    def create(self, name: str, content: str) -> bool:
        """Write a new lock; return False if there is one of this name."""

    def rewrite(self, name: str, content: str) -> None:
        """Replace the content of a lock."""

    def remove(self, name: str) -> None:
        """Remove a lock; one that is gone is no error."""


class FolderLockFiles:
    """Locks in a folder; NFS will do."""

    def __init__(self, folder: Path) -> None:
        """Take the folder."""
        self._folder = folder

    def names(self) -> list[str]:
        """See `LockFiles`."""
        return sorted(path.name for path in self._folder.glob(_PATTERN))

    def read(self, name: str) -> dict[str, Any]:
        """See `LockFiles`."""
        try:
            return _parsed((self._folder / name).read_bytes())
        except FileNotFoundError:
            return {}

    def create(self, name: str, content: str) -> bool:
        """See `LockFiles`."""
        path = self._folder / name
        try:
            # O_EXCL, which NFS honours from its version 3 on.
            with path.open("x", encoding="utf-8") as file:
                file.write(content)
        except FileExistsError:
            return False
        except OSError:  # a full disk: an empty lock would only make the next start wait
            path.unlink(missing_ok=True)
            raise
        return True

    def rewrite(self, name: str, content: str) -> None:
        """See `LockFiles`; never creates the file anew."""
        with (self._folder / name).open("r+", encoding="utf-8") as file:
            file.write(content)

    def remove(self, name: str) -> None:
        """See `LockFiles`."""
        (self._folder / name).unlink(missing_ok=True)


class BucketLockFiles:
    """Locks on a bucket, whose store creates an object exclusively (S3 and GCS do)."""

    def __init__(self, url: str) -> None:
        """Take the URL of the run."""
        self._url = url

    def names(self) -> list[str]:
        """See `LockFiles`."""
        found = objects.expand_glob(f"{self._url}/{_PATTERN}")
        return sorted(url.rpartition("/")[2] for url in found)

    def read(self, name: str) -> dict[str, Any]:
        """See `LockFiles`."""
        [content] = objects.read_objects([f"{self._url}/{name}"])
        return {} if content is None else _parsed(content)

    def create(self, name: str, content: str) -> bool:
        """See `LockFiles`."""
        return objects.create_object(f"{self._url}/{name}", content.encode())

    def rewrite(self, name: str, content: str) -> None:
        """See `LockFiles`."""
        objects.write_object(f"{self._url}/{name}", content.encode())

    def remove(self, name: str) -> None:
        """See `LockFiles`."""
        objects.delete_objects([f"{self._url}/{name}"])


def lock_files(workdir: Path | str) -> LockFiles:
    """Return the lock files of a run's folder, or of a URL."""
    if isinstance(workdir, str) and objects.is_remote(workdir):
        return BucketLockFiles(workdir)
    return FolderLockFiles(Path(workdir))


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        holder = json.loads(content)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}
