"""Raw pairs to training shards: counted, restartable, with the same bytes every time.

There are two passes over the input. Each is a plain function of one chunk that any worker may call
at any time, even twice: `hash_chunk` hashes every item, so that duplicates can be found over all
chunks, and `make_shard` writes the chunk's shard. Finished work is recorded in the output folder:
in `.progress` while shards are missing, and in `manifest.json` at the end.
"""

import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Bool, Int, UInt64

from groupvit_jax.data.images import superpixels, transforms
from groupvit_jax.data.sources.counts import Counts, add_up, sentence
from groupvit_jax.data.text import caption_tokens
from groupvit_jax.prepare import files, inputs, noun_counts, packed_rows, writers
from groupvit_jax.prepare.images import ImageLimits
from groupvit_jax.prepare.inputs import Chunk, Item, Unmatched
from groupvit_jax.prepare.noun_counts import NOUNS, NounCounts
from groupvit_jax.prepare.runners import Runner
from groupvit_jax.prepare.samples import Dropped, convert_item
from groupvit_jax.prepare.writers import PreparedSample

logger = logging.getLogger(__name__)

__all__ = ["DUPLICATES", "MANIFEST", "Options", "find_duplicates", "hash_chunk", "make_shard"]
__all__ += ["prepare"]

DUPLICATES = ("pair", "image", "keep")
MANIFEST = "manifest.json"
_PROGRESS, _OPTIONS = ".progress", "options.json"
_DUPLICATE = "duplicate"
# Besides the options, the bytes of a shard depend on these.
_LIBRARIES = ("array_record", "opencv-python-headless", "simplejpeg", "textblob")
_NAMED_DROPS = 20  # logged drops per shard


@dataclasses.dataclass(frozen=True)
class Options:
    """Options that determine the shards' content, named like the flags of `launch.prepare`.

    Attributes:
      input: tar or parquet files, a table, or tfds:NAME/SPLIT; see `prepare.inputs.plan`.
      output: the folder of the shards.
      images: the folder of a table's files.
      image_column: image column of a table or parquet file, "" for the usual names.
      caption_column: caption column, "" for the usual names.
      format: one of `prepare.writers.FORMATS`.
      samples_per_shard: for tables and TFDS sets; a tar or parquet file becomes one shard.
      max_side: see `ImageLimits`.
      short_side: see `ImageLimits`.
      jpeg_quality: see `ImageLimits`.
      encoding: see `ImageLimits`.
      duplicates: "pair" drops repeated images with the same captions, "image" drops repeated images
        whatever their captions, "keep" drops none.
      tokenizer: "clip", or the path of a SentencePiece model or of BERT's vocab.txt, to store token
        ids; "" for none.
      superpixels: whether to store each image's superpixels.
      noun_bank: how many of the captions' most frequent nouns to list in nouns.json; 0 for none.
    """

    input: str
    output: str
    images: str = ""
    image_column: str = ""
    caption_column: str = ""
    format: str = "webdataset"
    samples_per_shard: int = 10_000
    max_side: int = ImageLimits.max_side
    short_side: int = ImageLimits.short_side
    jpeg_quality: int = ImageLimits.jpeg_quality
    encoding: str = ImageLimits.encoding
    duplicates: str = "pair"
    tokenizer: str = ""
    superpixels: bool = False
    noun_bank: int = 0

    @property
    def progress(self) -> epath.Path:
        """Return the folder of intermediate results, removed at the end."""
        return epath.Path(self.output) / _PROGRESS


@dataclasses.dataclass(frozen=True)
class Task:
    """The work on one chunk of the input."""

    options: Options
    chunk: Chunk
    num_shards: int
    num_threads: int = 1

    @property
    def shard_name(self) -> str:
        """File name of the chunk's shard."""
        return writers.shard_name(self.options.format, self.chunk.number, self.num_shards)

    def progress_file(self, kind: str) -> epath.Path:
        """Return the file of a worker's result; `kind` is its extension."""
        return self.options.progress / f"{self.chunk.number:05d}.{kind}"


def prepare(
    options: Options, run: Runner, num_workers: int = 1, verify: bool = False
) -> dict[str, Any]:
    """Write the missing shards and the manifest.

    Args:
      options: input, output and settings of the shards.
      run: the runner that calls the workers' functions.
      num_workers: local cores of `run`; they share a shard if there are few shards.
      verify: also compares checksums of existing shards, not only their sizes.

    Returns:
      The manifest: options, counts, and file, sha256, bytes and counts of every shard.

    Raises:
      ValueError: an option is invalid, or differs from those the folder was started with, or no
        pair of the input could be used.
      OSError: the input can't be read or the output can't be written.
    """
    identity = _check_folder(options)
    records = _finished(options, verify)
    manifest = epath.Path(options.output) / MANIFEST
    counts_nouns = bool(options.noun_bank) and not (epath.Path(options.output) / NOUNS).exists()
    is_whole = manifest.exists() and len(records) == len(files.read_json(manifest)["shards"])
    if is_whole and not counts_nouns:
        return files.read_json(manifest)
    _begin(options, identity)
    columns = options.image_column, options.caption_column
    chunks = inputs.plan(
        options.input, options.images, columns, options.samples_per_shard, options.progress
    )
    num_threads = max(1, num_workers // len(chunks))
    tasks = [Task(options, chunk, len(chunks), num_threads) for chunk in chunks]
    missing = [
        task
        for task in tasks
        if task.shard_name not in records
        or (counts_nouns and not task.progress_file("nouns").exists())
    ]
    if options.duplicates != "keep" and missing:
        run(hash_chunk, [task for task in tasks if not task.progress_file("hashes").exists()])
        _mark_duplicates(tasks)
    run(make_shard, missing)
    for task in missing:
        records[task.shard_name] = files.read_json(task.progress_file("done"))
    if counts_nouns:
        parts = [task.progress_file("nouns") for task in tasks]
        files.publish(
            epath.Path(options.output) / NOUNS,
            noun_counts.most_frequent(parts, options.noun_bank),
        )
    return _finish(options, [records[task.shard_name] for task in tasks])


def _check_folder(options: Options) -> dict[str, Any]:
    """Return the settings of the shards, after checking that the folder was started with them."""
    for name in ("input", "images", "output"):
        files.check_store(name, getattr(options, name))
    output = epath.Path(options.output)
    if output.suffix == ".tar":
        raise ValueError(f"--output={output}: expected a folder, in which shards get their names")
    libraries: tuple[str, ...] = _LIBRARIES
    if options.superpixels:
        superpixels.check_installed("--superpixels")
        libraries += ("scikit-image",)
    try:
        tokenizer = caption_tokens.open_tokenizer(options.tokenizer)
    except (OSError, ValueError) as error:
        raise ValueError(f"--tokenizer={options.tokenizer}: {error}") from error
    identity = dataclasses.asdict(options) | {
        "input_fingerprint": inputs.fingerprint(options.input),
        "tokenizer_fingerprint": tokenizer and caption_tokens.fingerprint(tokenizer),
        "versions": {name: importlib.metadata.version(name) for name in libraries},
    }
    if (output / MANIFEST).exists():
        _check_same(options, files.read_json(output / MANIFEST)["options"], identity)
    elif (options.progress / _OPTIONS).exists():
        _check_same(options, files.read_json(options.progress / _OPTIONS), identity)
    elif output.exists() and any(path.name != _PROGRESS for path in output.iterdir()):
        raise FileExistsError(
            f"--output={output}: holds files but no {MANIFEST}; expected a new or empty folder"
        )
    return identity


def _begin(options: Options, identity: dict[str, Any]) -> None:
    options.progress.mkdir(parents=True, exist_ok=True)
    for folder in (epath.Path(options.output), options.progress):
        for path in folder.glob(f"*{files.INCOMPLETE}*"):  # of a killed run
            path.unlink(missing_ok=True)
    files.publish(options.progress / _OPTIONS, files.json_bytes(identity))


def _check_same(options: Options, old: dict[str, Any], new: dict[str, Any]) -> None:
    for field in dataclasses.fields(options):
        name = field.name
        begun_with = old.get(
            name, field.default
        )  # the option was added after the folder was started
        if begun_with != new[name] and name != "output":  # the folder may have been moved
            raise ValueError(
                f"--{name}={new[name]}: {options.output} was begun with --{name}={begun_with}; "
                "give that, or another --output"
            )
    for name in ("input", "tokenizer"):
        if old.get(f"{name}_fingerprint") != new[f"{name}_fingerprint"]:
            raise ValueError(
                f"--{name}={new[name]}: has changed since {options.output} was begun; "
                "choose another --output"
            )
    if old.get("versions") != new["versions"]:
        message = "%s was begun with %s; shards made now, with %s, may differ in their bytes"
        logger.warning(message, options.output, old.get("versions"), new["versions"])


def _finished(options: Options, verify: bool) -> dict[str, dict[str, Any]]:
    """Return the records of existing shards, by file name."""
    output = epath.Path(options.output)
    if (output / MANIFEST).exists():
        records = files.read_json(output / MANIFEST)["shards"]
    else:
        records = [files.read_json(file) for file in options.progress.glob("*.done")]
    return {record["file"]: record for record in records if _is_whole(output, record, verify)}


def _is_whole(output: epath.Path, record: dict[str, Any], verify: bool) -> bool:
    path = output / record["file"]
    size = path.stat().length if path.exists() else None
    if size != record["bytes"]:
        logger.warning("%s: %s bytes, expected %d; made anew", path, size, record["bytes"])
        return False
    if verify and files.sha256(path) != record["sha256"]:
        logger.warning("%s: its sha256 is not the recorded one; made anew", path)
        return False
    return True


def hash_chunk(task: Task) -> str:
    """Write the hashes of a chunk's items, UInt64 "N 2"; zeros stand for unusable items."""
    items = (item for item in inputs.read(task.chunk) if isinstance(item, Item))
    rows = [_hash(item, task.options.duplicates) for item in items]
    hashes = np.frombuffer(b"".join(rows), "<u8").reshape(len(rows), 2)
    files.publish(task.progress_file("hashes"), files.array_bytes(hashes))
    return f"{len(rows)} images hashed for shard {task.shard_name}"


def _hash(item: Item, duplicates: str) -> bytes:
    if item.problem or item.image is None:
        return bytes(16)
    digest = hashlib.blake2b(item.image, digest_size=16)
    if duplicates == "pair":
        digest.update(json.dumps(item.captions).encode())
    return digest.digest()


def _mark_duplicates(tasks: Sequence[Task]) -> None:
    hashes = [files.read_array(t.progress_file("hashes")) for t in tasks]
    duplicate = find_duplicates(np.concatenate(hashes))
    start = 0
    for task, part in zip(tasks, hashes, strict=True):
        positions = files.array_bytes(np.flatnonzero(duplicate[start : start + len(part)]))
        files.publish(task.progress_file("duplicates"), positions)
        start += len(part)


def find_duplicates(hashes: UInt64[np.ndarray, "N 2"]) -> Bool[np.ndarray, " N"]:
    """Return which hashes occurred before; zeros are never duplicates."""
    order = np.lexsort(
        (hashes[:, 1], hashes[:, 0])
    )  # a stable sort keeps the first occurrence first
    ordered = hashes[order]
    duplicate = np.zeros(len(hashes), bool)
    same = (ordered[1:] == ordered[:-1]).all(axis=1) & ordered[1:].any(axis=1)
    duplicate[order[1:][same]] = True
    return duplicate


def make_shard(task: Task) -> str:
    """Write a chunk's shard and its record."""
    transforms.init_worker()
    counts, lost = Counts(), np.zeros(len(packed_rows.LENGTHS), int)
    nouns = NounCounts()
    target = epath.Path(task.options.output) / task.shard_name
    with files.written_complete(target) as local:
        samples = _samples(task, counts, lost, nouns)
        writers.write_shard(task.options.format, local, samples, task.options.encoding)
        record = {
            "file": task.shard_name,
            "sha256": files.sha256(local),
            "bytes": os.path.getsize(local),
            **counts.as_dict(),
            "packed_rows": packed_rows.as_dict(counts.written.images, lost),
        }
    if task.options.noun_bank:
        files.publish(task.progress_file("nouns"), nouns.to_json())
    files.publish(task.progress_file("done"), files.json_bytes(record))
    return f"{task.shard_name}: {counts.written.images} of {counts.read.images} images"


def _samples(
    task: Task, counts: Counts, lost: Int[np.ndarray, " L"], nouns: NounCounts
) -> Iterator[PreparedSample]:
    """Yield a chunk's samples in order; count outcomes of items, lost prompts and nouns."""
    options, marks = task.options, task.progress_file("duplicates")
    drop_duplicates = options.duplicates != "keep"
    duplicates = frozenset(files.read_array(marks).tolist() if drop_duplicates else ())
    fields = dataclasses.fields(ImageLimits)
    limits = ImageLimits(**{field.name: getattr(options, field.name) for field in fields})
    tokenizer = caption_tokens.open_tokenizer(options.tokenizer)

    def convert(numbered: tuple[int, Item | Unmatched]) -> PreparedSample | Dropped:
        position, item = numbered
        if isinstance(item, Unmatched):
            return Dropped(item.reason)
        if position in duplicates:
            return Dropped(_DUPLICATE)
        key = f"{task.chunk.number:05d}{position:06d}"
        return convert_item(key, item, limits, tokenizer, options.superpixels)

    numbered = enumerate(inputs.read(task.chunk))
    with ThreadPoolExecutor(task.num_threads) as pool:
        # A few at a time, since they are all held in memory.
        while window := list(itertools.islice(numbered, 4 * task.num_threads)):
            for (_, item), result in zip(window, pool.map(convert, window), strict=True):
                if isinstance(item, Unmatched):
                    counts.leave(item.reason, item.tally)
                elif isinstance(result, Dropped):
                    example = f"{item.source}: {result.detail}" if result.detail else item.source
                    counts.drop(result.reason, dataclasses.replace(item.tally, examples=[example]))
                    _log_drop(item.source, result, counts.read.images - counts.written.images)
                else:
                    counts.write(item.tally, item.unused)
                    counts.replaced += sum("\ufffd" in caption for caption in item.captions)
                    lost += result.lost_prompts
                    nouns.add(result.nouns)
                    yield result


def _log_drop(source: str, dropped: Dropped, number: int) -> None:
    if number <= _NAMED_DROPS:
        why = f"{dropped.reason} ({dropped.detail})" if dropped.detail else dropped.reason
        logger.warning("Dropped %s: %s", source, why)
    elif number == _NAMED_DROPS + 1:
        logger.warning("More are dropped from this shard; %s counts them", MANIFEST)


def _finish(options: Options, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Write the manifest and a TFDS set's metadata, then remove the intermediate results."""
    output = epath.Path(options.output)
    counts = add_up(records)
    if not counts["written"]["images"]:
        for record in records:  # empty shards; without them the folder can be used again
            (output / record["file"]).unlink(missing_ok=True)
        options.progress.rmtree()
        raise ValueError(f"--input={options.input}: nothing written; found: {sentence(counts)}")
    manifest = {
        "options": files.read_json(options.progress / _OPTIONS),
        "counts": counts,
        "packed_rows": packed_rows.add_up(records),
        "shards": list(records),
    }
    if options.format == "tfds":
        lengths = [record["written"]["images"] for record in records]
        num_bytes = sum(record["bytes"] for record in records)
        writers.write_tfds_metadata(
            output, lengths, num_bytes, "Image-caption pairs", options.encoding
        )
    files.publish(output / MANIFEST, files.json_bytes(manifest))
    options.progress.rmtree()
    return manifest
