"""What a photo of another size compiles, in seconds.

    JAX_PLATFORMS=cpu python -m benchmarks.photo_sizes

Photos of several sizes go one after another through groupvit-small with random weights, as
`launch.segment` does it, without a cache of compiled programs. A row for each: the programs that
JAX compiled for it, and the seconds from trace to machine code.
"""

import collections
from collections.abc import Sequence

import jax
import numpy as np
from absl import app

from benchmarks.random_model import random_pretrained
from groupvit_jax.segmenter import Segmenter
from launch import common

# Height and width. The last three are longer than 2048 : 448, whose windows are lower than usual.
_SIZES = ((480, 640), (480, 640), (470, 620), (427, 640), (640, 480), (333, 500), (1080, 1920))
_SIZES += ((100, 640), (104, 660), (85, 480))
_STEPS = ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")
_LABELS = ("dog", "cat", "grass", "sky", "person", "car")


def main(argv: Sequence[str]) -> None:
    """Segment and print a table."""
    del argv
    seconds: dict[str, float] = collections.Counter()

    def listen(event: str, duration: float, **details: str) -> None:
        if event.split("/")[-1].removesuffix("_duration") in _STEPS:
            seconds[details["fun_name"].removeprefix("jit(").removesuffix(")")] += duration

    jax.monitoring.register_event_duration_secs_listener(listen)
    segmenter = Segmenter(random_pretrained(), background=True)
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}")
    for size in _SIZES:
        seconds.clear()
        segmenter(np.zeros((*size, 3), np.uint8), _LABELS)
        programs = ", ".join(f"{name} {s:.1f}" for name, s in seconds.items() if s >= 0.05)
        print(f"{size[0]:5} x {size[1]:4} {sum(seconds.values()):6.1f} s  {programs or 'nothing'}")


if __name__ == "__main__":
    common.use_all_cores()
    app.run(main)
