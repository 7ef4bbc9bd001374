"""Decoding and augmentation against PIL, in images per second of one core.

    python -m benchmarks.image_ops --images=DIR

DIR holds .jpg files or tar shards with them. Both sides get the same images, crops and operations
in turns; the figures are medians over the rounds of CPU time, which other processes on the machine
disturb less than wall time. Before timing, both outputs are compared.
"""

import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from absl import app, flags

from benchmarks import pil_pipeline
from groupvit_jax.data.images import decode
from groupvit_jax.data.images import transforms as image_ops

_IMAGES = flags.DEFINE_string("images", None, "folder of .jpg or .tar files", required=True)
_MAX_IMAGES = flags.DEFINE_integer("max_images", 200, "images per round")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "rounds, each over all images")
_SIZE = flags.DEFINE_integer("size", 224, "side of the crop")

Transform = Callable[[bytes, np.random.Generator], object]


def _read_images(folder: Path) -> Iterator[bytes]:
    for path in sorted(folder.iterdir()):
        if path.suffix in (".jpg", ".jpeg"):
            yield path.read_bytes()
        elif path.suffix == ".tar":
            with tarfile.open(path) as tar:
                members = (m for m in tar if m.name.endswith((".jpg", ".jpeg")))
                yield from (file.read() for m in members if (file := tar.extractfile(m)))


def _opencv(data: bytes, rng: np.random.Generator) -> object:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def _transforms(size: int) -> dict[str, Transform]:
    """Name of what is timed -> function."""
    augment, plain = image_ops.Augmentation(), image_ops.Augmentation(num_ops=0)
    return {
        "decode, PIL": lambda data, rng: np.asarray(pil_pipeline.decode(data)),
        "decode, OpenCV": _opencv,
        "decode, simplejpeg": lambda data, rng: simplejpeg.decode_jpeg(data, "RGB"),
        "decode, ours": lambda data, rng: decode.decode(data),
        "crop and flip, PIL": lambda data, rng: pil_pipeline.train_transform(
            data, size, plain, rng
        ),
        "crop and flip, ours": lambda data, rng: image_ops.train_transform(data, size, plain, rng),
        "all, PIL": lambda data, rng: pil_pipeline.train_transform(data, size, augment, rng),
        "all, ours": lambda data, rng: image_ops.train_transform(data, size, augment, rng),
    }


def _seconds(transform: Transform, images: list[bytes], seed: int) -> float:
    start = time.process_time()
    for index, data in enumerate(images):
        transform(data, np.random.default_rng((seed, index)))
    return time.process_time() - start


def _difference(ours: Transform, other: Transform, images: list[bytes]) -> float:
    """Mean over the images of the mean absolute difference, in grey levels."""
    differences = []
    for index, data in enumerate(images):
        a, b = (np.asarray(f(data, np.random.default_rng(index)), int) for f in (ours, other))
        differences.append(np.abs(a - b).mean())
    return float(np.mean(differences))


def main(argv: list[str]) -> None:
    del argv
    image_ops.init_worker()
    images = list(_read_images(Path(_IMAGES.value)))
    if not images:
        raise app.UsageError(f"--images={_IMAGES.value}: no .jpg file and no .tar with any in it")
    # From the whole folder, whose order may be that of sizes or subjects.
    images = images[:: max(len(images) // _MAX_IMAGES.value, 1)][: _MAX_IMAGES.value]
    transforms = _transforms(_SIZE.value)
    sizes = [decode.read_header(data) for data in images]
    print(
        f"{len(images)} images, mean {np.mean([h.height * h.width for h in sizes]) / 1e3:.0f} "
        f"kilopixels, {np.mean([len(data) for data in images]) / 1e3:.0f} kB"
    )
    for what in ("crop and flip", "all"):
        pair = transforms[f"{what}, ours"], transforms[f"{what}, PIL"]
        print(f"{what}: mean difference to PIL {_difference(*pair, images):.2f} grey levels")
    # One function after the other in every round: drifts of the clock hit all alike.
    seconds: dict[str, list[float]] = {name: [] for name in transforms}
    for seed in range(_ROUNDS.value):
        for name, transform in transforms.items():
            seconds[name].append(_seconds(transform, images, seed))
    print("| | images/s/core | x PIL |\n|---|---|---|")
    for name, times in seconds.items():
        pil = seconds[name.split(",")[0] + ", PIL"]
        ratio = np.median(np.array(pil) / np.array(times))
        print(f"| {name} | {len(images) / np.median(times):.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    app.run(main)
