"""A training step of groupvit-small with rows of several lengths for the texts of an image.

    JAX_PLATFORMS=cpu python -m benchmarks.packed_length [--lengths=80,112] [--batch_size=8]

The same images and texts in each; the rows differ in their padding only, which costs what tokens
cost. Steps are timed in turns, so that other work on the machine slows all of them: read the ratio.
XLA counts the FLOPs of one of the scanned blocks a stage only.
"""

import time

import numpy as np
from absl import app, flags

from benchmarks import train_step
from launch import common
from tests.interop import weights

_LENGTHS = flags.DEFINE_list("lengths", ["80", "112"], "values of config.data.packed_length")


def main(argv: list[str]) -> None:
    del argv
    common.use_huge_pages()  # as launch.train does, before JAX is used
    steps, pretrained = {}, None
    for length in map(int, _LENGTHS.value):
        config = train_step.make_config(flags.FLAGS.batch_size, on_gpu=False)
        config.data.packed_length = length
        config.model.scan_layers = True  # compiles in a fraction of the time
        pretrained = pretrained or weights.random_pretrained(config.model)
        batch, _ = train_step.make_batch(config)
        steps[length], flops = train_step.our_step(pretrained, config, batch)
        steps[length]()  # compiles
        print(f"{length} tokens: {flops / len(batch['text']) / 1e9:.2f} GFLOP an image", flush=True)
    seconds = {length: [] for length in steps}
    for _ in range(flags.FLAGS.repeats):
        for length, step in steps.items():
            start = time.process_time()
            step()
            seconds[length].append(time.process_time() - start)
    first = np.array(next(iter(seconds.values())))
    for length, times in seconds.items():
        ratio = np.array(times) / first
        cost = f"{np.median(ratio):.3f} ({ratio.min():.3f} to {ratio.max():.3f})"
        print(f"{length} tokens: {np.median(times):.2f} CPU s a step, {cost} of the first")


if __name__ == "__main__":
    app.run(main)
