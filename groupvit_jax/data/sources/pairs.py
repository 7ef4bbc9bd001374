"""Image-caption pairs as random-access sources: WebDataset tar shards and TFDS sets.

A source can be pickled to worker processes, and a read never depends on earlier reads.
"""

import bisect
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Int

from groupvit_jax.data.sources import counts, tar_index, tar_scan, tfds_copy
from groupvit_jax.data.sources.patterns import expand_pattern
from groupvit_jax.data.sources.samples import (
    BrokenSampleError,
    Sample,
    Source,
    make_sample,
    read_fields,
    texts_of,
)
from groupvit_jax.data.sources.shard_reader import Members, read_members, read_samples
from groupvit_jax.data.sources.tfds_builders import open_builder, skip_decoding
from groupvit_jax.data.storage import objects
from groupvit_jax.data.storage.cache import HeldFolder, ObjectCache
from groupvit_jax.data.storage.objects import StoredObject

logger = logging.getLogger(__name__)

# More than a 16-bit RGB image of 40 megapixels needs, far less than would exhaust a worker.
MAX_SAMPLE_BYTES = 2**28
_NOTHING = Members([0] * len(tar_scan.PARTS), [-1] * len(tar_scan.PARTS))
# Fields of `config.data.sources.NAME` by its kind.
FIELDS = {
    "webdataset": ("pattern", "weight", "exchange_captions"),
    "tfds": ("name", "split", "data_dir", "weight", "exchange_captions"),
}


def make_source(
    name: str,
    fields: Mapping[str, Any],
    index_dir: str = "",
    cache: ObjectCache | None = None,
) -> Source:
    """Open the set `config.data.sources.NAME`.

    Args:
      name: NAME, for messages.
      fields: `kind` and the fields of that kind: "webdataset" has `pattern`; "tfds" has
        `name`, `split` and `data_dir`. `weight` and `exchange_captions` are ignored here.
      index_dir: cache folder for indices of tar shards; by default beside the shards.
      cache: for objects on stores; required for a TFDS set on a store.

    Raises:
      ValueError: an unknown kind or field, or a set that can't be read.
      FileNotFoundError: a pattern that matches nothing.
    """
    field = f"config.data.sources.{name}"
    kind = fields.get("kind")
    if kind not in FIELDS:
        raise ValueError(f"{field}.kind={kind!r}: expected one of {sorted(FIELDS)}")
    if unknown := sorted(set(fields) - {"kind", *FIELDS[kind]}):
        raise ValueError(f"{field}.{unknown[0]}: unknown; {kind} has {sorted(FIELDS[kind])}")
    if kind == "webdataset":
        field += ".pattern"
        shards = expand_pattern(fields.get("pattern", ""), field)
        return WebDatasetSource(shards, index_dir, field, cache)
    return TfdsSource(
        fields.get("name", ""),
        fields.get("split", "train"),
        fields.get("data_dir", ""),
        field,
        cache,
    )


class WebDatasetSource:
    """Tar shards in img2dataset's format: KEY.jpg (or another image), KEY.txt, KEY.json.

    The endings of images are `tar_scan.IMAGE_EXTENSIONS`; rgb.npy is from `launch.prepare`.

    Captions come from the list "captions" of the JSON if it exists, else from the text file, else
    from "caption" of the JSON. Members are read in place: nothing is extracted, and no path in a
    shard is trusted.
    """

    def __init__(
        self,
        shards: Sequence[str],
        index_dir: str = "",
        field: str = "pattern",
        cache: ObjectCache | None = None,
    ):
        """Index the shards, or load their cached indices; log what can't be used.

        Args:
          shards: paths or URLs of tar files; samples keep their order.
          index_dir: see `tar_index.load_indices`.
          field: the configuration field that named the shards, for messages.
          cache: for shards on stores; without one, samples are read by range.

        Raises:
          ValueError: there is no pair in any shard, or a store can't be read.
          FileNotFoundError: a shard isn't on its store.
        """
        self._shards = tar_index.describe_shards(shards, field)
        self._cache = cache
        self._index_files = tar_index.load_indices(self._shards, index_dir, cache)
        self._ends: list[int] = []
        for shard, file in zip(self._shards, self._index_files, strict=True):
            index = tar_index.open_index(file)
            self._ends.append(len(index) + (self._ends[-1] if self._ends else 0))
            break_at = tar_scan.break_of(index)
            if break_at is not None:
                kept = tar_scan.num_complete(index)
                size = os.path.getsize(shard) if isinstance(shard, str) else shard.size
                message = "%s: the tar breaks off at byte %d of %d; samples kept before it: %d"
                logger.warning(message, _name(shard), break_at, size, kept)
        self._log_counts(field)

    def _log_counts(self, field: str) -> None:
        """Log how many members are used and what becomes of the others."""
        total = counts.add_up(map(tar_index.read_counts, self._index_files))
        used, left = total["written"], counts.sentence(total)
        shards = f"{len(self._shards)} shards, e.g. {_name(self._shards[0])}"
        if not used["images"]:
            raise ValueError(f"{field}: no pair in {shards}; found: {left}")
        logger.log(
            logging.INFO if used == total["read"] else logging.WARNING,
            "%s: %d of %d files used, in %d pairs of %s; not used: %s",
            *(field, used["files"], total["read"]["files"], used["images"], shards, left),
        )

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        [sample] = self.read_many([index])
        if isinstance(sample, BrokenSampleError):
            raise sample
        return sample

    def read_many(self, indices: Sequence[int]) -> "Iterator[Sample | BrokenSampleError]":
        """Yield samples; all reads from stores are issued at once."""
        found = [self._find(index) for index in indices]
        entries = [tar_index.open_index(self._index_files[shard])[row] for shard, row in found]
        samples = [Members(entry["offset"].tolist(), entry["size"].tolist()) for entry in entries]
        shards = [self._shards[shard] for shard, _ in found]
        # What is over the limit is not even read; `_whole` turns it into an error.
        allowed = [members if _is_allowed(members) else _NOTHING for members in samples]
        parts = read_samples(shards, allowed, self._cache)
        for entry, members, contents in zip(entries, samples, parts, strict=True):
            yield _sample_or_error(entry, members, contents)

    def locate(self, index: int) -> str:
        """Return "SHARD: KEY"."""
        shard, row = self._find(index)
        key = _decode_key(tar_index.open_index(self._index_files[shard])[row])
        return f"{_name(self._shards[shard])}: {key}"

    def _find(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)


def _name(shard: str | StoredObject) -> str:
    return shard if isinstance(shard, str) else shard.url


def _decode_key(entry: np.void) -> str:
    return entry["key"].decode("utf-8", "replace")


def read_parts(
    fd: int, offsets: Int[np.ndarray, " P"], sizes: Int[np.ndarray, " P"]
) -> list[bytes | None]:
    """Read a sample's members.

    Args:
      fd: the open tar file.
      offsets: byte offsets of the members, Int "P", from `tar_scan.scan`.
      sizes: sizes of the members; -1 if the sample has no such member.

    Returns:
      The P contents; None for a missing member.

    Raises:
      BrokenSampleError: it exceeds `MAX_SAMPLE_BYTES`, or the file is truncated.
    """
    members = Members(offsets.tolist(), sizes.tolist())
    return _whole(members, read_members(fd, members if _is_allowed(members) else _NOTHING))


def _is_allowed(members: Members) -> bool:
    return members.span.num_bytes <= MAX_SAMPLE_BYTES


def _whole(members: Members, parts: list[bytes | None]) -> list[bytes | None]:
    """Check that a sample was read completely."""
    if not _is_allowed(members):
        num_bytes = members.span.num_bytes
        raise BrokenSampleError(f"{num_bytes} bytes, more than the limit of {MAX_SAMPLE_BYTES}")
    for part, size in zip(parts, members.sizes, strict=True):
        if part is not None and len(part) < size:
            raise BrokenSampleError("the shard has become shorter since it was indexed")
    return parts


def _sample_or_error(
    entry: np.void, members: Members, parts: list[bytes | None]
) -> "Sample | BrokenSampleError":
    try:
        image, text, metadata = _whole(members, parts)
        if image is None:
            raise BrokenSampleError(f"no image ({', '.join(tar_scan.IMAGE_EXTENSIONS)})")
        fields = read_fields(metadata)
        return make_sample(image, texts_of(text, fields), _decode_key(entry), fields)
    except BrokenSampleError as error:
        return error


class TfdsSource:
    """A prepared TFDS set in a random-access format; TensorFlow need not be installed.

    Its features are `image` (encoded, or a uint8 array), `captions` (a sequence of texts) or
    `caption`, and optionally `key` or `id`.
    """

    def __init__(
        self,
        name: str,
        split: str,
        data_dir: str,
        field: str = "tfds",
        cache: ObjectCache | None = None,
    ):
        """Open the set.

        Args:
          name: the set's name, e.g. "coco_captions"; not needed if `data_dir` is its own folder.
          split: e.g. "train" or "train[:1%]".
          data_dir: the folder that holds TFDS sets, or the one of the set's version; on a store,
            the latter.
          field: the configuration field, for messages.
          cache: where files of a set on a store are copied to and locked while this source is open.

        Raises:
          ValueError: the set can't be found or read, or lacks an image or captions.
        """
        self._copy: HeldFolder | None = None
        if objects.is_remote(data_dir):
            self._copy = tfds_copy.copy_to_cache(data_dir, split, f"{field}.data_dir", cache)
            data_dir = str(self._copy.path)
        data_dir = os.path.expanduser(data_dir)
        try:
            builder = open_builder(name, data_dir)
            # Other image features, such as masks, are not used, and decoding them is slow.
            from tensorflow_datasets.core.features import Image

            images = [
                key for key, feature in builder.info.features.items() if isinstance(feature, Image)
            ]
            skip = {key: skip_decoding() for key in images}
            self._examples = builder.as_data_source(split, decoders=skip)
        except (OSError, ValueError, AssertionError, NotImplementedError, ImportError) as error:
            raise ValueError(f"{field} ({name!r} in {data_dir!r}): {error}") from error
        features = set(builder.info.features)
        if "image" not in features or not {"caption", "captions"} & features:
            found = sorted(features)
            raise ValueError(f"{field}: expected features image and caption(s), found {found}")
        self._name = f"{builder.info.full_name}/{split}"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_copy": None}  # the process that opened the set holds the copy

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Sample:
        example = self._examples[index]
        captions = example["captions"] if "captions" in example else [example["caption"]]
        if isinstance(captions, Mapping):  # a sequence of {"id", "text"} in coco_captions
            captions = captions["text"]
        key = example.get("key", example.get("id", index))
        metadata = example.get("metadata")
        fields = read_fields(metadata) if isinstance(metadata, bytes) else {}
        texts = [_as_str(caption) for caption in captions]
        return make_sample(_encoded(example["image"]), texts, _as_str(key), fields)

    def locate(self, index: int) -> str:
        """Return "NAME/VERSION/SPLIT: INDEX"."""
        return f"{self._name}: {index}"


def _as_str(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _encoded(image: bytes | np.ndarray) -> bytes:
    """Return the encoded image; arrays become PNGs, so that all sources return files."""
    if isinstance(image, bytes):
        return image
    # OpenCV encodes BGR.
    return cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes()
