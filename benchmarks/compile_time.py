"""Compile time, program size and memory of groupvit-small's training step.

    python -m benchmarks.compile_time [--batch_size=8] [--rows=unrolled,scanned,one_block]
    JAX_PLATFORMS=cpu python -m benchmarks.compile_time --topology=v5e:1x1  # with the extra tpu

Each row is a process of its own. "unrolled" compiles every block, "scanned" one a stage and tower;
"one_block" is the model that has no more: the least that scanning can come to. "dots" and "blocks"
are scanned with that `config.model.remat`. "second_start" runs the scanned step a second time with
the first one's compilation cache: seconds from the start of the process to the end of its first
step. CPU seconds are those to judge by on a machine that others use. With --topology the step is
compiled for chips that aren't there, in the configured bfloat16.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
from absl import app, flags
from ml_collections import ConfigDict

from configs.base import get_config
from groupvit_jax import optim, parallel
from groupvit_jax.models import build_model
from groupvit_jax.plan import compiling, hardware
from groupvit_jax.train import state as state_lib
from groupvit_jax.train.contrastive_task import make_contrastive_loss
from groupvit_jax.train.step import make_train_step
from groupvit_jax.train.tasks import task_of

_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "images a step")
_ROWS = flags.DEFINE_list(
    "rows",
    ["unrolled", "scanned", "one_block", "second_start", "dots", "blocks"],
    "what to measure; of a topology, second_start is left out",
)
_TOPOLOGY = flags.DEFINE_string("topology", "", "chips to compile for; this machine by default")
_WORK = flags.DEFINE_string("work", "", "the row that this process measures; internal")

MIB = 2**20


def make_config(row: str) -> ConfigDict:
    config = get_config()
    if not _TOPOLOGY.value:
        config.model.dtype = "float32"
    config.train.batch_size = _BATCH_SIZE.value
    config.model.scan_layers = row not in ("unrolled", "one_block")
    if row == "one_block":
        config.model.image.depths = (1,) * len(config.model.image.depths)
        config.model.text.num_layers = 1
    config.model.remat = row if row in ("dots", "blocks") else "none"
    return config


def make_step(config: ConfigDict) -> tuple[Any, Any, Any]:
    """Return the jitted step for one of this machine's devices, a state, and a batch's shapes."""
    mesh = parallel.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    model, shapes = build_model(config.model), task_of(config).batch_shapes(config)
    schedule = optim.make_schedule(config.optimizer.learning_rate, 1000, 10)
    params = state_lib.abstract_params(model, shapes)
    optimizer = optim.make_optimizer(config.optimizer, schedule, params)
    state, shardings = state_lib.create_sharded_state(
        model, optimizer, jax.random.key(0), shapes, mesh, config.parallel.rules
    )
    loss_fn, groups = make_contrastive_loss(model, config, mesh), config.optimizer.groups
    step = make_train_step(loss_fn, optimizer, schedule, mesh, shardings, groups)
    return step, state, shapes


def work(row: str) -> dict[str, float]:
    """Compile the step and, for a start from the cache, run it."""
    config, topology = make_config(row), _TOPOLOGY.value
    step, state, shapes = (None, None, None) if topology else make_step(config)
    wall, cpu = time.perf_counter(), time.process_time()
    if topology:
        lowered = compiling.lower_step(config, hardware.find_topology(topology, 1))[0]
    else:
        lowered = step.lower(state, shapes)
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
    if row.endswith("start"):  # "first_start" fills the cache
        batch = jax.tree.map(lambda s: jax.numpy.zeros(s.shape, s.dtype), shapes)
        jax.block_until_ready(compiled(state, batch))
        usage = resource.getrusage(resource.RUSAGE_SELF)
        found |= {"start_cpu": usage.ru_utime + usage.ru_stime}
    return found


def measure(row: str, cache: str) -> dict[str, float]:
    arguments = [f"--{name}={flags.FLAGS[name].value}" for name in ("batch_size", "topology")]
    arguments.append(f"--work={row}")
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
        if row == "second_start" and _TOPOLOGY.value:
            continue
        with tempfile.TemporaryDirectory() as cache:
            if row == "second_start":
                measure("first_start", cache)
            found[row] = values = measure(row, cache if row == "second_start" else "")
        keys = ("wall", "cpu", "lower_cpu", "program", "temporaries")
        print(f"{row:<14}" + "".join(f"{values[key]:>17.1f}" for key in keys), flush=True)
    for row in ("scanned", "one_block"):
        if not {row, "unrolled"} <= found.keys():
            continue
        wall, cpu = (found[row][key] / found["unrolled"][key] for key in ("wall", "cpu"))
        print(f"{row} takes {wall:.2f} of the unrolled wall time, {cpu:.2f} of its CPU time")
    if "second_start" in found:
        start = found["second_start"]
        print(f"second start: {start['start']:.1f} s, {start['start_cpu']:.1f} CPU s, first step")


if __name__ == "__main__":
    app.run(main)
