"""Copies a prepared TFDS set from an object store to the local disk.

ArrayRecord's reader only opens local files and gs://, so the files of a split are copied from any
store into the bounded cache.
"""

import os
import tempfile
from pathlib import Path

from groupvit_jax.data.storage import objects
from groupvit_jax.data.storage.cache import HeldFolder, ObjectCache
from groupvit_jax.data.storage.objects import StoredObject

_METADATA = (".json", ".txt")
_MAX_METADATA_BYTES = 2**26


def copy_to_cache(url: str, split: str, field: str, cache: ObjectCache | None) -> HeldFolder:
    """Copy the metadata of a set and the files of one split to a local folder.

    Args:
      url: the folder of the set's version.
      split: e.g. "train" or "train[:1%]"; only the files that it reads are copied.
      field: the configuration field of `url`, for messages.
      cache: where the copy is kept.

    Raises:
      ValueError: there is no cache or no set, a file is missing, or the files don't fit.
    """
    if cache is None:
        raise ValueError(
            f"{field}={url!r}: a TFDS set on a store is copied to the local disk, expected a "
            "folder for it in config.data.cache_dir"
        )
    try:
        found = objects.list_folder(url)
        metadata = {name: o for name, o in found.items() if name.endswith(_METADATA)}
        if "features.json" not in metadata:
            raise ValueError(f"no features.json among its {len(found)} objects, expected a set")
        names = _names_of(metadata, split)
        missing = [name for name in names if name not in found]
        if missing:
            raise ValueError(f"{missing[0]} is missing ({len(missing)} of {len(names)} files)")
        return cache.fetch_folder(metadata | {name: found[name] for name in names})
    except (OSError, ValueError, AssertionError) as error:
        raise ValueError(f"{field}={url!r}: {error}") from error


def _names_of(metadata: dict[str, StoredObject], split: str) -> list[str]:
    """Return the names of the files that a split reads."""
    ranges = [objects.Range(stored, 0, stored.size) for stored in metadata.values()]
    if sum(part.size for part in ranges) > _MAX_METADATA_BYTES:
        raise ValueError(f"its JSON and text files take more than {_MAX_METADATA_BYTES} bytes")
    with tempfile.TemporaryDirectory() as folder:
        for name, content in zip(metadata, objects.read_ranges(ranges), strict=True):
            # A name from a store must not lead out of the folder.
            Path(folder, os.path.basename(name)).write_bytes(content)
        import tensorflow_datasets as tfds  # half a second, which most commands need not wait

        splits = tfds.builder_from_directory(folder).info.splits
        return [os.path.basename(part.filename) for part in splits[split].file_instructions]
