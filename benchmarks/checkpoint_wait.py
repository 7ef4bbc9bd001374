r"""How long a step waits for a checkpoint: with the workdir on a slow bucket, and on the disk.

    python -m benchmarks.checkpoint_wait [--config=configs/scenes.py] [--saves=5]

Serves S3 on the loopback, in a process of its own, which answers each request after 200 ms and
takes 20 MB/s. Saves a state of random values to both in turn, the bucket being sent the save before
meanwhile, and prints the seconds that `Checkpointer.save` takes, for which training waits.
"""

import contextlib
import json
import logging
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

import fsspec
import jax
from absl import app, flags
from ml_collections import config_flags

from benchmarks.random_model import random_array
from groupvit_jax import optim, parallel
from groupvit_jax.data.storage import objects
from groupvit_jax.models import build_model
from groupvit_jax.runs.bucket.mirror import BucketWorkdir
from groupvit_jax.train import state as state_lib
from groupvit_jax.train.checkpointer import Checkpointer, CheckpointSettings
from groupvit_jax.train.tasks import task_of

_CONFIG = config_flags.DEFINE_config_file("config", "configs/scenes.py")
_SAVES = flags.DEFINE_integer("saves", 5, "saves of each kind to take the median of")
_PAUSE = flags.DEFINE_float("pause", 8.0, "seconds from one save to the next")
_LATENCY = flags.DEFINE_float("latency", 0.2, "seconds before each answer")
_BANDWIDTH = flags.DEFINE_float("bandwidth", 20e6, "bytes a second of all requests")


def serve(latency: float, bandwidth: float, ports: multiprocessing.Queue) -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    store, lock = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def slow(environ, start_response):
        time.sleep(latency)
        with lock:  # all requests share one link
            time.sleep(int(environ.get("CONTENT_LENGTH") or 0) / bandwidth)
        return store(environ, start_response)

    server = make_server("127.0.0.1", 0, slow, threaded=True)
    ports.put(server.port)
    server.serve_forever()


def random_state(config) -> state_lib.TrainState:
    shapes, model = task_of(config).batch_shapes(config), build_model(config.model)
    params = state_lib.abstract_params(model, shapes)
    optimizer = optim.make_optimizer(config.optimizer, optim.make_schedule(1e-3, 10, 0), params)
    mesh = parallel.make_mesh(dict(data=-1, fsdp=1, tensor=1))
    abstract = state_lib.abstract_state(model, optimizer, shapes, mesh, config.parallel.rules)

    return jax.tree.map(random_array, abstract)


def main(argv: list[str]) -> None:
    del argv
    context = multiprocessing.get_context("spawn")
    ports = context.Queue()
    arguments = (_LATENCY.value, _BANDWIDTH.value, ports)
    server = context.Process(target=serve, args=arguments, daemon=True)
    server.start()
    state = random_state(_CONFIG.value)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        stack.callback(server.terminate)
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports.get()}",
            "AWS_ACCESS_KEY_ID": "k",
            "AWS_SECRET_ACCESS_KEY": "s",
            "AWS_REGION": "us-east-1",
            "XDG_CACHE_HOME": f"{folder}/cache",
        }
        fsspec.filesystem("s3").mkdir("runs")
        bucket = stack.enter_context(BucketWorkdir("s3://runs/first"))
        places = {"disk": Path(folder) / "run", "bucket": bucket.folder}
        seconds = measure(places, state)
        uploaded = sum(stored.size for stored in objects.find_objects("s3://runs/first").values())
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(json.dumps(dict(seconds=seconds, medians=medians, uploaded_megabytes=uploaded / 1e6)))


def measure(places: dict[str, Path], state: state_lib.TrainState) -> dict[str, list[float]]:
    """Return the seconds of each save; the first of each place, which opens files, not counted."""
    settings = CheckpointSettings(every_steps=1, keep_last=2)
    checkpointers = {
        name: Checkpointer(folder / "checkpoints", settings) for name, folder in places.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in places}
    for step in range(_SAVES.value + 1):
        for name, checkpointer in checkpointers.items():
            start = time.perf_counter()
            checkpointer.save(step, state, {}, {})
            seconds[name].append(time.perf_counter() - start)
            time.sleep(_PAUSE.value / len(places))
    for checkpointer in checkpointers.values():
        checkpointer.close()
    return {name: times[1:] for name, times in seconds.items()}


if __name__ == "__main__":
    app.run(main)
