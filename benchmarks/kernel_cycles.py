"""Cycles of the fused blocks on TPUs you don't have, from libtpu's own schedule.

    JAX_PLATFORMS=cpu python -m benchmarks.kernel_cycles [--topology=v5e:1x1] [--batch_size=64]
        [--config=configs/groupvit_gcc_yfcc_30e.py] [--stacks=stage_0,text]

Needs the extra tpu, no chip. Each kernel is compiled in a process of its own. A kernel's loop
over its programs is unrolled inside, so its schedule's bundles (one a cycle) are the cycles of one
program, as long as HBM keeps up beside it. The backward kernel's bundles include the code that
clears the sums of gradients and writes them, which runs in the first and the last program only: the
time is too long by up to 8 % where a program has few tokens.
"""

import functools
import glob
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags

_CONFIG = config_flags.DEFINE_config_file("config", "configs/groupvit_gcc_yfcc_30e.py", "model")
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:1x1", "kind of chip and its chips")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "images of a chip")
_STACKS = flags.DEFINE_list("stacks", [], "names to compile; all by default")
_KERNEL = flags.DEFINE_string("kernel", "", "compile this one of the stack alone, in this process")

# Cycles a second: peak FLOP/s over those of the matrix units in a cycle.
CLOCKS = {"v5e": 197e12 / (4 * 128**2 * 2), "v6e": 918e12 / (4 * 256**2 * 2)}
_BUNDLES = re.compile(r"total scheduled bundles:\s+(\d+)")


def stacks_of(config: ConfigDict) -> dict[str, tuple[int, int]]:
    """Return depth and tokens of a row of each stack that kernels may run."""
    image = config.model.image
    found, segments = {}, (image.image_size // image.patch_size) ** 2
    for i, (depth, tokens) in enumerate(zip(image.depths, image.num_group_tokens, strict=True)):
        found[f"stage_{i}"] = (depth, segments + tokens)
        segments = (*image.num_output_groups, 0)[i]
    if config.model.text.get("kind", "clip") == "clip":
        found["text"] = (config.model.text.num_layers, config.data.packed_length)
    return found


def compile_kernel(config: ConfigDict, name: str, kernel: str, rows: int) -> dict[str, float]:
    """Compile a kernel for the chip; returns rows a program and CPU seconds."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from groupvit_jax.models import activations, layers
    from groupvit_jax.models.kernels import fused_blocks, stacks
    from groupvit_jax.plan import hardware

    device = hardware.find_topology(_TOPOLOGY.value).devices[0]
    mesh = jax.sharding.Mesh(np.array([device]), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    depth, tokens = stacks_of(config)[name]
    is_text = name == "text"
    tower = config.model.text if is_text else config.model.image
    dtype = jnp.dtype(config.model.dtype)
    block = layers.TransformerBlock(
        tower.num_heads,
        tower.mlp_ratio,
        activations.quick_gelu if is_text else activations.gelu,
        dtype=dtype,
        parent=None,
    )
    shape = (rows, tokens, tower.width)
    stack = stacks.choose_stack(block, shape, rows, stacks.VMEM_BYTES[device.device_kind])
    if stack is None:
        raise ValueError(f"{name}: no kernel on {device.device_kind}")

    def placed(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    params = jax.eval_shape(block.init, jax.random.key(0), jnp.zeros(shape))["params"]
    weights = jax.eval_shape(lambda p: stacks.stacked([p] * depth, dtype), params)
    weights = jax.tree.map(lambda leaf: placed(leaf.shape, leaf.dtype), weights)
    length = stack.block.row_length
    x = placed((rows * length, tower.width), dtype)
    layer, inputs = placed((), jnp.int32), placed((depth, *x.shape), dtype)
    mask = placed((rows, length, length), jnp.int8) if is_text else None
    scales = None if is_text else placed((depth, 2, rows), jnp.float32)
    started = time.process_time()
    if kernel == "forward":
        function: Any = fused_blocks.forward
        arguments: tuple[Any, ...] = (layer, x, weights, mask, scales)
    else:
        function = fused_blocks.backward
        arguments = (layer, inputs, x, weights, mask, scales)
    jax.jit(functools.partial(function, stack)).lower(*arguments).compile()
    return {"rows": stack.rows, "seconds": time.process_time() - started}


def measure(name: str, kernel: str) -> dict[str, float]:
    """Return bundles and rows of a program, and the CPU seconds of compiling it."""
    arguments = [f"--{flag}={value}" for flag, value in (("stacks", name), ("kernel", kernel))]
    with tempfile.TemporaryDirectory() as folder:
        dump = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        environment = dict(os.environ, JAX_PLATFORMS="cpu", LIBTPU_INIT_ARGS=dump)
        command = [sys.executable, "-m", "benchmarks.kernel_cycles", *sys.argv[1:], *arguments]
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
        found = json.loads(done.stdout.splitlines()[-1])
        texts = []
        for path in glob.glob(f"{folder}/*block_{kernel}*schedule-analysis_final_bundles.txt"):
            with open(path, encoding="utf-8") as file:
                texts.append(file.read())
    return found | {"bundles": max(int(_BUNDLES.search(text)[1]) for text in texts)}  # type: ignore[index]


def main(_: list[str]) -> None:
    """Print one line for each kernel."""
    config, clock = _CONFIG.value, CLOCKS[_TOPOLOGY.value.split(":")[0]]
    if _KERNEL.value:
        (name,) = _STACKS.value
        print(json.dumps(compile_kernel(config, name, _KERNEL.value, _BATCH_SIZE.value)))
        return
    print("| stack | blocks | kernel | rows a program | bundles a program | ms a block | CPU s |")
    print("|---|---|---|---|---|---|---|")
    for name in _STACKS.value or stacks_of(config):
        for kernel in ("forward", "backward"):
            found = measure(name, kernel)
            milliseconds = found["bundles"] * _BATCH_SIZE.value / found["rows"] / clock * 1e3
            print(
                f"| {name} | {stacks_of(config)[name][0]} | {kernel} | {found['rows']} "
                f"| {found['bundles']:,} | {milliseconds:.3f} | {found['seconds']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    app.run(main)
