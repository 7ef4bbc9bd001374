r"""Trains a SentencePiece vocabulary on captions.

python -m launch.train_tokenizer --input='shards/{0000..0331}.tar' --vocab_size=16384 \
    --output=captions.model
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from groupvit_jax.data.sources import captions_table
from groupvit_jax.data.text import tokenizers
from groupvit_jax.data.text.vocabulary import Vocabulary
from groupvit_jax.runs import exit_codes
from launch import common

logger = logging.getLogger(__name__)


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line, `argv[0]` being the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--input",
        required=True,
        help="tar shards (a pattern), .csv, .tsv, .jsonl, COCO's .json, or .txt (a line each)",
    )
    parser.add_argument("--output", required=True, help="the model file to write, FILE.model")
    parser.add_argument("--vocab_size", type=int, default=16384)
    parser.add_argument("--caption_column", default="", help="of a .csv or .tsv")
    parser.add_argument(
        "--max_captions", type=int, default=2_000_000, help="train on a sample of so many"
    )
    return parser.parse_args(argv[1:])


def main(flags: argparse.Namespace) -> None:
    """Train, write the model and say which settings belong to it."""
    try:
        output = _check_output(flags)
        captions = read_captions(flags.input, flags.caption_column, flags.max_captions)
        model = tokenizers.train_sentencepiece(captions, flags.vocab_size, flags.max_captions)
    except (ValueError, OSError) as error:
        common.fail(exit_codes.BAD_INPUT, error)
    # Renamed when whole: an interrupted write leaves no model that looks complete.
    unfinished = output.with_name(output.name + ".tmp")
    unfinished.write_bytes(model)
    os.replace(unfinished, output)
    tokenizer = tokenizers.make_tokenizer(Vocabulary("sentencepiece", model, str(output)), 77)
    print(
        f"Wrote {output}. Train with\n"
        f"  --config.data.tokenizer.name=sentencepiece --config.data.tokenizer.path={output} "
        f"--config.model.text.vocab_size={tokenizer.vocab_size} "
        f"--config.model.text.end_of_text_id={tokenizer.end_of_text_id}"
    )


def read_captions(path: str, caption_column: str, max_captions: int) -> Iterator[str]:
    """Stream the captions of tar shards, a table or a text file.

    Of shards with more samples than `max_captions`, every n-th sample is read.

    Raises:
      FileNotFoundError: a file is missing or a pattern matches nothing.
      ValueError: the table lacks the column.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in captions_table.TABLES:
        return _read_shards(path, max_captions)
    if not Path(path).is_file():
        raise FileNotFoundError(f"--input={path}: there is no such file")
    if suffix == ".txt":
        return _read_lines(path)
    return captions_table.read_texts(path, caption_column)


def _read_lines(path: str) -> Iterator[str]:
    with open(path, encoding="utf-8", errors="replace") as file:
        yield from file


def _read_shards(pattern: str, max_captions: int) -> Iterator[str]:
    # These import TFDS: slow, and a text file does without.
    from groupvit_jax.data.sources import pairs, samples
    from groupvit_jax.data.sources.patterns import expand_pattern

    source = pairs.WebDatasetSource(expand_pattern(pattern, "--input"), field="--input")
    # Rounded up: never more samples than captions are wanted.
    step = -(-len(source) // max_captions) if max_captions else 1
    num_broken = 0
    for index in range(0, len(source), step):
        try:
            yield from source[index]["captions"]
        except samples.BrokenSampleError as error:
            num_broken += 1
            if num_broken <= 10:
                logger.warning("Skipped %s: %s", source.locate(index), error)
    logger.info("Read every %d. of %d samples, %d broken", step, len(source), num_broken)


def _check_output(flags: argparse.Namespace) -> Path:
    """Fail before the training rather than after it."""
    output = Path(flags.output)
    if output.suffix != ".model":
        raise ValueError(f"--output={output}: expected a name that ends with .model")
    if not os.access(output.parent, os.W_OK):
        raise OSError(f"--output={output}: {output.parent} is no folder that can be written")
    # SentencePiece refuses smaller samples.
    if flags.max_captions and flags.max_captions <= 100:
        raise ValueError(f"--max_captions={flags.max_captions}: expected 0 (all) or over 100")
    return output


if __name__ == "__main__":
    main(parse_flags(sys.argv))
