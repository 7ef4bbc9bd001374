r"""Turns raw image-caption pairs into training shards; started again, it goes on where it was.

python -m launch.prepare --input=captions.csv --images=photos --output=shards

The configuration of a training then has
config.data.sources.pairs = dict(kind="webdataset", pattern="shards/*.tar")

docs/prepare.md has the other inputs, the counts, and Apache Beam's runners.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from absl import app, flags, logging

from groupvit_jax.data import prepare, prepare_counts, prepare_runners
from groupvit_jax.data.prepare_writers import FORMATS

_INPUT = flags.DEFINE_string(
    "input",
    None,
    "img2dataset's shards ('in/*.tar' or 'in/*.parquet'), a CSV or TSV of image files and "
    "captions, COCO's captions_*.json, or tfds:NAME/SPLIT.",
    required=True,
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "The folder for the shards and their manifest.json.", required=True
)
_DEFAULTS = prepare.Options("", "")
flags.DEFINE_string("images", "", "The folder that a table's image files are in.")
flags.DEFINE_string("image_column", "", "A table's or parquet file's column of images.")
flags.DEFINE_string("caption_column", "", "A table's or parquet file's column of captions.")
flags.DEFINE_enum(
    "format", _DEFAULTS.format, FORMATS, "Tar shards, or a TFDS set of ArrayRecord files."
)
flags.DEFINE_integer(
    "samples_per_shard",
    _DEFAULTS.samples_per_shard,
    "Images of a table or TFDS set in a shard; a tar or parquet file becomes one shard.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "max_side", _DEFAULTS.max_side, "Limit of the longer side in pixels; 0: none.", lower_bound=0
)
flags.DEFINE_integer(
    "short_side",
    _DEFAULTS.short_side,
    "Limit of the shorter side in pixels; 0: none.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "jpeg_quality",
    _DEFAULTS.jpeg_quality,
    "Of images that are encoded anew.",
    lower_bound=1,
    upper_bound=100,
)
flags.DEFINE_enum(
    "duplicates",
    _DEFAULTS.duplicates,
    prepare.DUPLICATES,
    "What is dropped: an image that came before with the same captions (pair), with any (image), "
    "or nothing (keep).",
)
flags.DEFINE_string(
    "tokenizer", "", "Store token ids too: 'clip', or the path of a SentencePiece model."
)
_NUM_WORKERS = flags.DEFINE_integer(
    "num_workers", os.cpu_count() or 1, "Processor cores to use, without --runner.", lower_bound=1
)
_RUNNER = flags.DEFINE_string(
    "runner",
    "",
    "An Apache Beam runner, e.g. DirectRunner, FlinkRunner, SparkRunner, DataflowRunner; its own "
    "flags follow after --. By default processes of this machine.",
)
_VERIFY = flags.DEFINE_bool(
    "verify", False, "Compare the checksums of shards made before, not only their sizes."
)


def main(argv: Sequence[str]) -> None:
    """Makes the shards that are missing and prints what became of the input."""
    if len(argv) > 1 and not _RUNNER.value:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    fields = dataclasses.fields(prepare.Options)
    values: dict[str, Any] = {field.name: flags.FLAGS[field.name].value for field in fields}
    options = prepare.Options(**values)
    try:
        if _RUNNER.value:
            runner, num_workers = prepare_runners.beam_runner(_RUNNER.value, argv[1:]), 1
        else:
            logging.set_verbosity(logging.INFO)  # names the shards as they are made
            num_workers = _NUM_WORKERS.value
            runner = prepare_runners.local_runner(num_workers)
        manifest = prepare.prepare(options, runner, num_workers, _VERIFY.value)
    except (OSError, ValueError, ImportError, prepare_runners.WorkerDiedError) as error:
        raise SystemExit(f"launch.prepare: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("launch.prepare: stopped; the same command goes on from here") from None
    print(f"{prepare_counts.table(manifest['counts'])}\n{_describe(manifest, options.output)}")


def _describe(manifest: dict, output: str) -> str:
    num_bytes = sum(shard["bytes"] for shard in manifest["shards"])
    return f"{len(manifest['shards'])} shards, {num_bytes:,} bytes: {output}/{prepare.MANIFEST}"


if __name__ == "__main__":
    app.run(main)
