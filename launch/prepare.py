r"""Turns image files with captions into training shards.

python -m launch.prepare --input=captions.csv --images=photos --output=shards/pairs-{:05d}.tar

The configuration of a training then has
config.data.sources.pairs = dict(kind="webdataset", pattern="shards/pairs-*.tar")
"""

from collections.abc import Sequence

from absl import app, flags

from groupvit_jax.data import shards

_INPUT = flags.DEFINE_string(
    "input",
    None,
    "A CSV or TSV of image files and captions, or COCO's captions_*.json.",
    required=True,
)
_IMAGES = flags.DEFINE_string(
    "images", None, "The folder that the image files are in.", required=True
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "The shards' path, e.g. shards/pairs-{:05d}.tar.", required=True
)
_IMAGE_COLUMN = flags.DEFINE_string("image_column", "", "The CSV's column of image files.")
_CAPTION_COLUMN = flags.DEFINE_string("caption_column", "", "The CSV's column of captions.")
_SAMPLES_PER_SHARD = flags.DEFINE_integer(
    "samples_per_shard", 10_000, "Images in a shard.", lower_bound=1
)
_MAX_SIDE = flags.DEFINE_integer(
    "max_side", 512, "Images with a longer side are made smaller.", lower_bound=1
)


def main(argv: Sequence[str]) -> None:
    """Writes the shards and prints what became of the input."""
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    try:
        items = shards.read_captions(_INPUT.value, _IMAGE_COLUMN.value, _CAPTION_COLUMN.value)
        summary = shards.write_shards(
            items, _IMAGES.value, _OUTPUT.value, _SAMPLES_PER_SHARD.value, _MAX_SIDE.value
        )
    except (OSError, ValueError) as error:
        raise SystemExit(f"launch.prepare: {error}") from error
    print(summary)


if __name__ == "__main__":
    app.run(main)
