"""Cost and gain of limits on size and quality; the preparation's speed against plain OpenCV.

    python -m benchmarks.prepare --input=captions.json --images=DIR

First, of one shard's images: bytes, how many random crops have fewer pixels than the square they
are enlarged to, and images per second of one core of the preparation's encoder, of OpenCV doing the
same to all files (decode, resize, encode: what img2dataset does), and of training's transform.
Then images per second of one core of all that `launch.prepare` does.
"""

import itertools
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from absl import app, flags

from groupvit_jax.data.images import transforms
from groupvit_jax.data.images.decode import read_header
from groupvit_jax.data.text import nouns
from groupvit_jax.prepare import inputs, preparation
from groupvit_jax.prepare.images import ImageLimits, encode_image
from groupvit_jax.prepare.runners import local_runner

_INPUT = flags.DEFINE_string("input", None, "as of launch.prepare", required=True)
_IMAGES = flags.DEFINE_string("images", "", "as of launch.prepare")
_MAX_IMAGES = flags.DEFINE_integer("max_images", 250, "images in the first table")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "of which the fastest counts")
_SIZE = 224
_CROPS = 50  # drawn of each image
_NONE = ImageLimits(0, 0)
_LIMITS = (
    _NONE,
    ImageLimits(512, 0),
    ImageLimits(512, 0, jpeg_quality=90),
    ImageLimits(0, 320),
    ImageLimits(0, 256),
    ImageLimits(0, 256, jpeg_quality=90),
)


def _opencv(data: bytes, limits: ImageLimits) -> bytes:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    scale = limits.scale(*image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    quality = [cv2.IMWRITE_JPEG_QUALITY, limits.jpeg_quality]
    return cv2.imencode(".jpg", image, quality)[1].tobytes()


def _per_second(function: Callable[[bytes], object], images: Sequence[bytes]) -> float:
    def seconds() -> float:
        start = time.process_time()
        for data in images:
            function(data)
        return time.process_time() - start

    return len(images) / min(seconds() for _ in range(_ROUNDS.value))


def _small_crops(images: Sequence[bytes]) -> float:
    rng = np.random.default_rng(0)
    headers = [read_header(data) for data in images]
    boxes = (
        transforms.sample_crop(header.height, header.width, rng)
        for header in headers
        for _ in range(_CROPS)
    )
    return float(np.mean([box.height * box.width < _SIZE**2 for box in boxes]))


def _print_limits(raw: Sequence[bytes]) -> None:
    augment, rng = transforms.Augmentation(), np.random.default_rng(0)
    print(f"{len(raw)} images\n\nmax_side short_side quality     kB  small crops", end="")
    print("  encode/s  OpenCV/s  ratio  train/s")
    for limits in _LIMITS:
        images = list(raw) if limits == _NONE else [encode_image(d, limits)[0] for d in raw]
        size = np.mean([len(data) for data in images]) / 1000
        ours = _per_second(lambda d, limits=limits: encode_image(d, limits), raw)
        other = _per_second(lambda d, limits=limits: _opencv(d, limits), raw)
        train = _per_second(lambda d: transforms.train_transform(d, _SIZE, augment, rng), images)
        print(
            f"{limits.max_side:8} {limits.short_side:10} {limits.jpeg_quality:7} {size:6.1f}"
            f"  {_small_crops(images):11.0%}  {ours:8.0f}  {other:8.0f}  {ours / other:5.2f}"
            f"  {train:7.0f}"
        )


def _prepare_all(output: str) -> float:
    """Return images per second of one core."""
    shutil.rmtree(output, ignore_errors=True)
    options = preparation.Options(_INPUT.value, output, _IMAGES.value)
    start = time.process_time()
    counts = preparation.prepare(options, local_runner(1))["counts"]
    return counts["read"]["images"] / (time.process_time() - start)


def main(argv: Sequence[str]) -> None:
    del argv
    transforms.init_worker()
    nouns.nouns("loads the tagger")
    with tempfile.TemporaryDirectory() as folder:
        chunks = inputs.plan(_INPUT.value, _IMAGES.value, ("", ""), 10_000, folder)
        items = itertools.islice(inputs.read(chunks[0]), _MAX_IMAGES.value)
        _print_limits([item.image for item in items if item.image])
        best = max(_prepare_all(f"{folder}/out") for _ in range(_ROUNDS.value))
    print(f"\nlaunch.prepare, both passes, tagging included: {best:.0f} images/s of one core")


if __name__ == "__main__":
    app.run(main)
