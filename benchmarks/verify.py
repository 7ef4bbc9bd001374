r"""What verifying a checkpoint's manifest adds to restoring it.

    python -m benchmarks.verify [--config=configs/groupvit_base.py] [--repeats=5]

Saves a state of random values in a temporary folder, then verifies and restores it in turn. Both
read from the page cache: a disk delivers the bytes once, to whoever reads them first. Prints the
medians in seconds, and their ratio in per cent.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
from absl import app, flags
from ml_collections import config_flags

from benchmarks.random_model import random_array
from groupvit_jax import optim, parallel
from groupvit_jax.models import build_model
from groupvit_jax.runs.manifest import find_damage
from groupvit_jax.train import state as state_lib
from groupvit_jax.train.checkpointer import Checkpointer, CheckpointSettings
from groupvit_jax.train.tasks import task_of

_CONFIG = config_flags.DEFINE_config_file("config", "configs/groupvit_base.py")
_REPEATS = flags.DEFINE_integer("repeats", 5, "restores to take the median of")


def main(argv: list[str]) -> None:
    del argv
    config = _CONFIG.value
    shapes, model = task_of(config).batch_shapes(config), build_model(config.model)
    schedule = optim.make_schedule(1e-3, 10, 0)
    params = state_lib.abstract_params(model, shapes)
    optimizer = optim.make_optimizer(config.optimizer, schedule, params)
    mesh = parallel.make_mesh(dict(data=-1, fsdp=1, tensor=1))
    abstract = state_lib.abstract_state(model, optimizer, shapes, mesh, config.parallel.rules)
    state = jax.tree.map(random_array, abstract)
    with tempfile.TemporaryDirectory() as folder:
        checkpointer = Checkpointer(folder, CheckpointSettings(), config.to_dict())
        checkpointer.save(1, state, {}, {})
        checkpointer.wait()
        del state
        seconds: dict[str, list[float]] = {"verify": [], "restore": []}
        for _ in range(_REPEATS.value):
            seconds["verify"].append(_time(lambda: find_damage(Path(folder) / "1")))
            seconds["restore"].append(_time(lambda: checkpointer.restore_latest(abstract)))
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        checkpointer.close()
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    per_cent = 100 * medians["verify"] / medians["restore"]
    print(json.dumps(dict(megabytes=size / 1e6, **medians, per_cent=per_cent), indent=2))


def _time(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - start


if __name__ == "__main__":
    app.run(main)
