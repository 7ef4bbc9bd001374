"""Cost of large batches on few devices: exchanges of the losses, and micro-batches.

    python -m benchmarks.scale [--devices=8] [--per_device=128] [--batch_size=256] [--repeats=5]

The losses (one caption and 3 prompts an image, width 256, forward and backward) run on forced host
devices, which share this machine's cores and memory: the bytes of logits are those of any device,
the seconds say how much is computed, but little about the links of accelerators. The training step
is that of configs/tiny.py on one device, in micro-batches against the whole batch; seconds are
medians, bytes are XLA's temporary memory.
"""

import os
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from jax.sharding import PartitionSpec

from configs import tiny
from groupvit_jax import losses, parallel
from groupvit_jax.models import build_model
from groupvit_jax.train import state as state_lib
from groupvit_jax.train.contrastive_task import make_contrastive_loss
from groupvit_jax.train.step import make_train_step
from groupvit_jax.train.tasks import task_of

_DEVICES = flags.DEFINE_integer("devices", 8, "forced host devices of the losses")
_PER_DEVICE = flags.DEFINE_integer("per_device", 128, "images a device of the losses")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "images of the training step")
_REPEATS = flags.DEFINE_integer("repeats", 5, "timed runs of each")

TEXTS, WIDTH = 4, 256


def mesh_of(num_devices: int) -> jax.sharding.Mesh:
    sizes = {"data": num_devices, "fsdp": 1, "tensor": 1}
    return parallel.make_mesh(sizes, jax.devices()[:num_devices])


def median_seconds(run: Callable[[], Any]) -> float:
    jax.block_until_ready(run())
    seconds = []
    for _ in range(_REPEATS.value):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def compiled_losses(num_devices: int, exchange: str, block_size: int) -> tuple[Any, Any]:
    """Return the compiled gradient of both losses, and its arguments."""
    mesh = mesh_of(num_devices)
    pairing = losses.Pairing("softmax", parallel.BATCH_AXES, exchange, block_size)

    def on_device(image: jax.Array, text: jax.Array) -> jax.Array:
        scale = jnp.log(1 / 0.07)
        texts = [text[:, :1], text[:, 1:]]
        found = losses.contrastive_losses(image, texts, [scale, scale], None, pairing)
        return found[0][0] + found[1][0]

    by_row = PartitionSpec(parallel.BATCH_AXES)
    total = jax.shard_map(on_device, mesh=mesh, in_specs=by_row, out_specs=PartitionSpec())
    batch, rng = num_devices * _PER_DEVICE.value, np.random.default_rng(0)
    shapes = {"image": (batch, WIDTH), "text": (batch, TEXTS, WIDTH)}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    given = tuple(parallel.to_global_batch(mesh, arrays).values())
    return jax.jit(jax.grad(total, argnums=(0, 1))).lower(*given).compile(), given


def logits_bytes(program: str, block: int) -> int:
    """Return the size of an array of own images by a block of examples and their texts."""
    # Sorted, because XLA may transpose.
    found = [sorted(map(int, s.split(","))) for s in re.findall(r"f32\[([\d,]+)\]", program)]
    wanted = sorted((_PER_DEVICE.value, TEXTS, block))
    return max((4 * int(np.prod(shape)) for shape in found if shape == wanted), default=0)


def compare_exchanges() -> None:
    print(f"losses, {_PER_DEVICE.value} images a device")
    print(
        f"{'devices':>8} {'exchange':<12}{'block':>6} {'logits MB':>10} {'ms':>8}  over all_gather"
    )
    for num_devices in (n for n in (1, 2, 4, 8, 16) if n <= _DEVICES.value):
        batch, reference = num_devices * _PER_DEVICE.value, 0.0
        for exchange, block in (
            ("all_gather", _PER_DEVICE.value),
            ("all_gather", batch),
            ("ring", _PER_DEVICE.value),
        ):
            compiled, given = compiled_losses(num_devices, exchange, block)
            seconds = median_seconds(lambda run=compiled, given=given: run(*given))
            reference = reference or seconds
            size = logits_bytes(compiled.as_text(), block) / 1e6
            print(
                f"{num_devices:>8} {exchange:<12}{block:>6} {size:>10.2f} {1e3 * seconds:>8.1f}  "
                f"{seconds / reference:.2f}"
            )


def compare_micro_batches() -> None:
    batch_size = _BATCH_SIZE.value
    print(f"\ntraining step of configs/tiny.py, {batch_size} images on one device")
    print(f"{'micro-batch':>12} {'temporary MB':>13} {'s':>7}  over the whole batch")
    reference = None
    for parts in (1, 2, 4, 8, 16):
        config = tiny.get_config()
        micro = None if parts == 1 else batch_size // parts
        config.train.update(batch_size=batch_size, micro_batch_size=micro)
        mesh, model = mesh_of(1), build_model(config.model)
        shapes, optimizer = task_of(config).batch_shapes(config), optax.sgd(0.0)
        state, shardings = state_lib.create_sharded_state(
            model, optimizer, jax.random.key(0), shapes, mesh, config.parallel.rules
        )
        loss_fn, groups = make_contrastive_loss(model, config, mesh), config.optimizer.groups
        step = make_train_step(loss_fn, optimizer, jnp.float32, mesh, shardings, groups)
        compiled = step.lower(state, shapes).compile()
        batch = {name: np.zeros(x.shape, x.dtype) for name, x in shapes.items()}
        on_device = parallel.to_global_batch(mesh, batch)

        def run(compiled: Any = compiled, on_device: Any = on_device) -> Any:
            nonlocal state
            state, metrics = compiled(state, on_device)
            return metrics

        found = (compiled.memory_analysis().temp_size_in_bytes / 1e6, median_seconds(run))
        reference = reference or found
        print(
            f"{micro or batch_size:>12} {found[0]:>13.1f} {found[1]:>7.2f}  memory "
            f"{found[0] / reference[0]:.2f}, time {found[1] / reference[1]:.2f}",
            flush=True,
        )


def main(argv: list[str]) -> None:
    del argv
    compare_exchanges()
    compare_micro_batches()


def _force_host_devices(argv: list[str]) -> list[str]:
    """Parse the flags before JAX looks for devices."""
    rest = flags.FLAGS(argv)
    os.environ["JAX_PLATFORMS"] = "cpu"
    count = f"--xla_force_host_platform_device_count={_DEVICES.value}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}"
    jax.config.update("jax_platforms", "cpu")
    return rest


if __name__ == "__main__":
    app.run(main, flags_parser=_force_host_devices)
