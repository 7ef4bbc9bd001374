"""Converts weights from one form into another, and shows that nothing changed.

python -m launch.convert --from=huggingface --checkpoint=DIR --to=safetensors --output=DIR --verify
python -m launch.convert --from=original --checkpoint=FILE.pth --to=huggingface --output=DIR
python -m launch.convert --checkpoint=DIR --goldens=000000039769.jpg

Exit codes: 0 done; 1 a comparison failed; 2 something is wrong with flags or files.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from groupvit_jax.interop import Pretrained, load_pretrained, verify
from groupvit_jax.interop.hub_files import read_origin
from groupvit_jax.interop.huggingface import write_huggingface
from groupvit_jax.interop.load import KINDS, find_kind
from groupvit_jax.interop.pretrained import with_image_size
from groupvit_jax.interop.save import save_pretrained
from groupvit_jax.runs import exit_codes
from groupvit_jax.runs.bucket.fetching import local_copy
from launch import common, overrides

TARGETS = ("safetensors", "huggingface", "original")


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line, `argv[0]` being the program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="the weights to convert")
    parser.add_argument(
        "--from", dest="source", choices=KINDS, help="what they are; found out by default"
    )
    parser.add_argument("--to", choices=TARGETS, help="what to write")
    parser.add_argument("--output", help="where to: a new directory, with --to=original a new .pth")
    parser.add_argument(
        "--config",
        help="configuration of the model, for a .pth whose tensors don't tell, e.g. other heads",
    )
    parser.add_argument(
        "--image_size", type=int, help="resize the position embeddings to images of this side"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="run the written model against transformers' GroupViT (needs the extra 'dev')",
    )
    parser.add_argument(
        "--goldens",
        metavar="JPG",
        help="COCO's 000000039769.jpg: compare its logits with those of the published models",
    )
    return parser.parse_args(argv[1:])


def main(flags: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    common.name_steps()
    with common.bad_input_ends(ModuleNotFoundError):
        return _run(flags)


def _run(flags: argparse.Namespace) -> int:
    source = _load(flags)
    agreed = True
    if flags.to:
        output = _new_path(flags.output)
        save_pretrained(output, source, flags.to, origin=read_origin(Path(flags.checkpoint)))
        print(f"wrote {output}")
        if flags.verify:
            agreed &= _verify(load_pretrained(output), source, flags)
    elif flags.verify or flags.output or not flags.goldens:
        raise ValueError(f"--to: missing, expected one of {', '.join(TARGETS)}")
    if flags.goldens:
        agreed &= _compare_with_published(source, Path(flags.goldens))
    return 0 if agreed else exit_codes.FAILED


def _load(flags: argparse.Namespace) -> Pretrained:
    path = local_copy(flags.checkpoint)
    kind = find_kind(path)
    if flags.source not in (None, kind):
        raise ValueError(f"--from={flags.source}, but {path} is {kind}")
    model_config = None
    if flags.config:
        model_config = overrides.read(["", f"--config={flags.config}"])[0].model
    source = load_pretrained(path, model_config)
    for note in source.notes:
        print(f"note: {note}")
    return with_image_size(source, flags.image_size) if flags.image_size else source


def _new_path(output: str | None) -> Path:
    if not output:
        raise ValueError("--output: missing, expected where to write")
    path = Path(output)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"--output={output}: exists already, expected a new path")
    return path


def _verify(written: Pretrained, source: Pretrained, flags: argparse.Namespace) -> bool:
    """Compare the model that was written with transformers' model of the source."""
    images, tokens = verify.random_inputs(source)
    with tempfile.TemporaryDirectory() as folder:
        # transformers reads its own format only, with the image size it was stored with.
        directory = Path(flags.checkpoint)
        if flags.image_size or find_kind(directory) != "huggingface":
            directory = Path(folder)
            write_huggingface(directory, source)
        reference = verify.transformers_outputs(directory, images, tokens)
    rows = verify.compare(verify.our_outputs(written, images, tokens), reference)
    table = Table("output", "largest value", "largest difference", "relative", "")
    for row in rows:
        verdict = "ok" if row.relative <= verify.TOLERANCE else "DIFFERS"
        numbers = (f"{row.scale:.4g}", f"{row.absolute:.2e}", f"{row.relative:.2e}")
        table.add_row(row.name, *numbers, verdict)
    console = Console()
    console.print(f"{flags.to} against transformers, tolerance {verify.TOLERANCE:g} relative:")
    console.print(table)
    return all(row.relative <= verify.TOLERANCE for row in rows)


def _compare_with_published(source: Pretrained, image: Path) -> bool:
    """Print the logits beside the published ones; tell whether one model's agree."""
    if not image.is_file():
        raise FileNotFoundError(f"--goldens={image}: no such file")
    logits = verify.golden_logits(source, image)
    table = Table("weights", *verify.GOLDEN_TEXTS, "")
    table.add_row("these", *(f"{value:.4f}" for value in logits))
    agreed = []
    for name, expected in verify.GOLDEN_LOGITS.items():
        difference = float(np.abs(logits - np.array(expected)).max())
        agreed.append(difference <= verify.GOLDEN_TOLERANCE)
        verdict = "agrees" if agreed[-1] else f"differs by {difference:.4f}"
        table.add_row(f"published {name}", *(f"{value:.4f}" for value in expected), verdict)
    Console().print(table)
    return any(agreed)


if __name__ == "__main__":
    sys.exit(main(parse_flags(sys.argv)))
