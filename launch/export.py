"""Hands parameters on: for evaluation elsewhere, in one or several formats.

python -m launch.export --checkpoint=runs/first --format=safetensors,huggingface --output=exports
python -m launch.export --checkpoint=runs/first --format=onnx,stablehlo --image_size=224,448 \
    --output=exports

Writes OUTPUT/safetensors, OUTPUT/huggingface, OUTPUT/original.pth, OUTPUT/stablehlo, OUTPUT/onnx.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from groupvit_jax.interop import load_pretrained
from groupvit_jax.interop.hub_files import read_origin
from groupvit_jax.interop.save import FORMATS, save_pretrained
from groupvit_jax.runs.bucket.fetching import local_copy
from groupvit_jax.runs.bucket.outputs import output_folder
from launch import common


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line, `argv[0]` being the program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="a run's folder or a step of it, an export, a Hugging Face directory or a .pth",
    )
    parser.add_argument("--format", required=True, help=f"one or more of {','.join(FORMATS)}")
    parser.add_argument("--output", required=True, help="folder to write into, or a URL")
    parser.add_argument(
        "--image_size",
        type=_sizes,
        default=(),
        help="sides of the images, by default the training's: position embeddings are resized; "
        "programs (stablehlo, onnx) may have several, with commas between",
    )
    parser.add_argument(
        "--license", default="", help="of the weights, for the model card, e.g. cc-by-4.0"
    )
    return parser.parse_args(argv[1:])


def _sizes(text: str) -> tuple[int, ...]:
    """Parse a flag's numbers, each once."""
    return tuple(dict.fromkeys(int(size) for size in text.split(",")))


def main(flags: argparse.Namespace) -> None:
    """Run the command."""
    common.name_steps()
    with common.bad_input_ends(), output_folder(flags.output) as output:
        _export(flags, _new_paths(flags, output))


def _export(flags: argparse.Namespace, paths: Mapping[str, Path]) -> None:
    checkpoint = local_copy(flags.checkpoint)
    pretrained = load_pretrained(checkpoint)
    origin = read_origin(checkpoint) if "huggingface" in paths else None
    for kind, path in paths.items():
        save_pretrained(
            path, pretrained, kind, flags.image_size, origin=origin, licence=flags.license
        )
        print(f"wrote {flags.output.rstrip('/')}/{path.name}")


def _new_paths(flags: argparse.Namespace, output: Path) -> dict[str, Path]:
    """Where each format goes; fails before the first is written."""
    paths = {}
    for kind in flags.format.split(","):
        if kind not in FORMATS:
            raise ValueError(f"--format={kind}: expected one or more of {','.join(FORMATS)}")
        name = "original.pth" if kind == "original" else kind
        paths[kind] = output / name
        if paths[kind].exists():
            raise FileExistsError(f"--output={flags.output}: {name} exists already")
    return paths


if __name__ == "__main__":
    main(parse_flags(sys.argv))
