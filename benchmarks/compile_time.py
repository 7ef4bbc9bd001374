"""What the training step of groupvit-small costs before it runs: compile time, size, memory.

    python -m benchmarks.compile_time [--batch_size=8] [--rows=unrolled,scanned,second_start,dots]

Each row is a process of its own. "unrolled" compiles every block, "scanned" one a stage and tower;
"dots" and "blocks" are scanned with that `config.model.remat`. "second_start" runs the scanned
step a second time with the first one's compilation cache: seconds from the start of the process
to the end of its first step. CPU seconds are those to judge by on a machine that others use.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time

import jax
from absl import app, flags
from ml_collections import ConfigDict

from configs.base import get_config
from groupvit_jax import optim, parallel
from groupvit_jax.models import build_model
from groupvit_jax.train import state as state_lib
from groupvit_jax.train.step import make_train_step

_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "images a step")
_ROWS = flags.DEFINE_list(
    "rows", ["unrolled", "scanned", "second_start", "dots", "blocks"], "what to measure"
)
_WORK = flags.DEFINE_string("work", "", "the row that this process measures; internal")

MIB = 2**20


def make_config(row: str) -> ConfigDict:
    config = get_config()
    config.model.dtype = "float32"
    config.train.batch_size = _BATCH_SIZE.value
    config.model.scan_layers = row != "unrolled"
    config.model.remat = row if row in ("dots", "blocks") else "none"
    return config


def work(row: str) -> dict[str, float]:
    """Compiles the step and, for a start from the cache, runs it."""
    config = make_config(row)
    mesh = parallel.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    model, shapes = build_model(config.model), state_lib.batch_shapes(config)
    schedule = optim.make_schedule(config.optimizer, config.train.batch_size, 1000, 10)
    variables = jax.eval_shape(
        model.init, jax.random.key(0), *(shapes[n] for n in ("image", "text", "text_ends"))
    )
    optimizer = optim.make_optimizer(config.optimizer, schedule, variables["params"])
    state, shardings = state_lib.create_sharded_state(
        model, optimizer, jax.random.key(0), shapes, mesh, config.parallel.rules
    )
    wall, cpu = time.perf_counter(), time.process_time()
    lowered = make_train_step(model, optimizer, schedule, config, mesh, shardings).lower(
        state, shapes
    )
    lower_wall, lower_cpu = time.perf_counter() - wall, time.process_time() - cpu
    compiled = lowered.compile()
    found = {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "lower_wall": lower_wall,
        "lower_cpu": lower_cpu,
        "program": len(compiled.as_text()) / MIB,
        "temporaries": compiled.memory_analysis().temp_size_in_bytes / MIB,
    }
    if row.endswith("start"):
        batch = jax.tree.map(lambda s: jax.numpy.zeros(s.shape, s.dtype), shapes)
        jax.block_until_ready(compiled(state, parallel.to_global_batch(mesh, batch)))
        usage = resource.getrusage(resource.RUSAGE_SELF)
        found |= {"start_cpu": usage.ru_utime + usage.ru_stime}
    return found


def measure(row: str, cache: str) -> dict[str, float]:
    arguments = [f"--batch_size={_BATCH_SIZE.value}", f"--work={row}"]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
    begin = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.compile_time", *arguments],
        check=True,
        stdout=subprocess.PIPE,
        env=environment if cache else {**environment, "JAX_ENABLE_COMPILATION_CACHE": "false"},
    )
    return json.loads(result.stdout.splitlines()[-1]) | {"start": time.perf_counter() - begin}


def main(argv: list[str]) -> None:
    del argv
    if _WORK.value:
        print(json.dumps(work(_WORK.value)))
        return
    header = ("lower+compile s", "CPU s", "of it lower", "program MiB", "temporaries MiB")
    print(f"{'':<14}" + "".join(f"{name:>17}" for name in header))
    found = {}
    for row in _ROWS.value:
        with tempfile.TemporaryDirectory() as cache:
            if row == "second_start":
                measure("first_start", cache)
            found[row] = values = measure(row, cache if row == "second_start" else "")
        keys = ("wall", "cpu", "lower_cpu", "program", "temporaries")
        print(f"{row:<14}" + "".join(f"{values[key]:>17.1f}" for key in keys), flush=True)
    if {"unrolled", "scanned"} <= found.keys():
        wall, cpu = (found["scanned"][key] / found["unrolled"][key] for key in ("wall", "cpu"))
        print(f"scanned takes {wall:.2f} of the unrolled wall time, {cpu:.2f} of its CPU time")
    if "second_start" in found:
        start = found["second_start"]
        print(f"second start: {start['start']:.1f} s, {start['start_cpu']:.1f} CPU s, first step")


if __name__ == "__main__":
    app.run(main)
