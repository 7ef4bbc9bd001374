r"""Turns raw image-caption pairs into training shards; started again, it goes on where it was.

python -m launch.prepare --input=captions.csv --images=photos --output=shards

The configuration of a training then has
config.data.sources.pairs = dict(kind="webdataset", pattern="shards/*.tar")

docs/prepare.md has the other inputs, the counts, and Apache Beam's runners.
"""

import argparse
import dataclasses
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence

from etils import epath

from groupvit_jax.data.sources import counts
from groupvit_jax.data.text import noun_bank
from groupvit_jax.prepare import noun_counts, packed_rows, preparation, runners
from groupvit_jax.prepare.images import ENCODINGS
from groupvit_jax.prepare.writers import FORMATS
from groupvit_jax.runs import exit_codes

NOUN_BANK = "noun_bank.npz"  # in the output folder


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line, `argv[0]` being the program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_input_options(parser)
    _add_output_options(parser, preparation.Options("", ""))
    parser.add_argument(
        "--noun_bank_tower",
        default="",
        help="a checkpoint whose text tower embeds the nouns, in noun_bank.npz, for "
        "config.data.noun_bank",
    )
    parser.add_argument(
        "--num_workers",
        type=_between(1),
        default=os.cpu_count() or 1,
        help="processor cores to use, without --runner",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare the checksums of shards made before, not only their sizes",
    )
    parser.add_argument(
        "--runner",
        default="",
        help="an Apache Beam runner: DirectRunner, FlinkRunner, SparkRunner, DataflowRunner, ...; "
        "by default processes of this machine",
    )
    parser.add_argument("beam_flags", nargs="*", help="the runner's own flags, after --")
    flags = parser.parse_args(argv[1:])
    if flags.noun_bank_tower and not flags.noun_bank:
        parser.error(f"--noun_bank_tower={flags.noun_bank_tower} without --noun_bank")
    if flags.beam_flags and not flags.runner:
        parser.error(f"unknown arguments without --runner: {' '.join(flags.beam_flags)}")
    return flags


# Together they add a flag for every field of `prepare.Options`.


def _add_input_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input",
        required=True,
        help="img2dataset's shards ('in/*.tar' or 'in/*.parquet'), CSV, TSV or JSON lines of image "
        "files and captions, COCO's captions_*.json, or tfds:NAME/SPLIT",
    )
    parser.add_argument(
        "--images", default="", help="the folder of the image files that a table or parquet names"
    )
    for column in ("image_column", "caption_column"):
        parser.add_argument(f"--{column}", default="", help="of a table or parquet file")


def _add_output_options(parser: argparse.ArgumentParser, default: preparation.Options) -> None:
    parser.add_argument(
        "--output", required=True, help="the folder for the shards and their manifest.json"
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default=default.format,
        help="tar shards, or a TFDS set of ArrayRecord files",
    )
    parser.add_argument(
        "--samples_per_shard",
        type=_between(1),
        default=default.samples_per_shard,
        help="images of a table or TFDS set; a tar or parquet file becomes one shard",
    )
    for side in ("max_side", "short_side"):
        which = "longer" if side == "max_side" else "shorter"
        parser.add_argument(
            f"--{side}",
            type=_between(0),
            default=getattr(default, side),
            help=f"limit of the {which} side in pixels, 0 for none",
        )
    parser.add_argument(
        "--jpeg_quality",
        type=_between(1, 100),
        default=default.jpeg_quality,
        help="of images that are encoded anew",
    )
    parser.add_argument(
        "--encoding",
        choices=ENCODINGS,
        default=default.encoding,
        help="of the images: jpeg, or pixels as they are, far larger and the fastest to train on",
    )
    parser.add_argument(
        "--duplicates",
        choices=preparation.DUPLICATES,
        default=default.duplicates,
        help="drop an image that came before with the same captions (pair), with any (image), or "
        "keep all",
    )
    parser.add_argument(
        "--tokenizer",
        default="",
        help="store token ids too: 'clip', or the path of a SentencePiece model or of a BERT's "
        "vocab.txt",
    )
    parser.add_argument(
        "--superpixels",
        action="store_true",
        help="store each image's superpixels too, for config.loss.superpixel_weight",
    )
    parser.add_argument(
        "--noun_bank",
        type=_between(0),
        default=default.noun_bank,
        help="list so many of the captions' most frequent nouns in nouns.json",
    )


def _between(low: int, high: float = math.inf) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        if not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text}: expected {low} to {high}")
        return int(text)

    return whole_number


def main(flags: argparse.Namespace) -> None:
    """Make the shards that are missing and print what became of the input."""
    names = [field.name for field in dataclasses.fields(preparation.Options)]
    options = preparation.Options(**{name: getattr(flags, name) for name in names})
    try:
        if flags.runner:
            runner, num_workers = runners.beam_runner(flags.runner, flags.beam_flags), 1
        else:
            logging.basicConfig(level=logging.INFO, format="%(message)s")  # names finished shards
            num_workers = flags.num_workers
            runner = runners.local_runner(num_workers)
        manifest = preparation.prepare(options, runner, num_workers, flags.verify)
        if flags.noun_bank_tower:
            embed_nouns(flags.output, flags.noun_bank_tower)
    except (OSError, ValueError, ImportError, runners.WorkerDiedError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        died = isinstance(error, runners.WorkerDiedError)
        sys.exit(exit_codes.FAILED if died else exit_codes.BAD_INPUT)
    except KeyboardInterrupt:
        sys.exit("launch.prepare: stopped; the same command goes on from here")
    num_bytes = sum(shard["bytes"] for shard in manifest["shards"])
    print(counts.table(manifest["counts"]))
    # A folder that an earlier version finished has no such counts.
    if lost := packed_rows.sentence(manifest.get("packed_rows", {"prompts": 0})):
        print(lost)
    path = f"{flags.output}/{preparation.MANIFEST}"
    print(f"{len(manifest['shards'])} shards, {num_bytes:,} bytes: {path}")


def embed_nouns(output: str, checkpoint: str) -> None:
    """Write the noun bank of a folder of shards: its nouns as a model's text tower embeds them.

    Raises:
      ValueError: the checkpoint has no text tower, or there are no nouns.
      FileNotFoundError: there is no such checkpoint.
    """
    # Only this needs JAX, whose import takes as long as a small preparation.
    import jax

    from groupvit_jax import parallel
    from groupvit_jax.data.text.tokenizers import make_tokenizer
    from groupvit_jax.eval.encoding import SEGMENTATION_PROMPTS, Encoder
    from groupvit_jax.interop.load import load_pretrained
    from groupvit_jax.models import build_model

    nouns = noun_counts.read_nouns(output)
    pretrained = load_pretrained(checkpoint)
    pretrained.check_two_towers("--noun_bank_tower")
    pretrained.check_finite()
    context_length = pretrained.model_config.text.context_length
    tokenizer = make_tokenizer(pretrained.tokenizer, context_length)
    mesh = parallel.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, jax.local_devices())
    encoder = Encoder(build_model(pretrained.model_config), tokenizer, mesh)
    variables = jax.device_put(pretrained.variables, parallel.replicated(mesh))
    embeddings = encoder.class_embeddings(variables, nouns, SEGMENTATION_PROMPTS)
    path = epath.Path(output) / NOUN_BANK
    noun_bank.write_noun_bank(path, nouns, embeddings)
    print(f"{len(nouns)} nouns, embeddings of {embeddings.shape[1]} channels: {path}")


if __name__ == "__main__":
    main(parse_flags(sys.argv))
