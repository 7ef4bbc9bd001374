"""A run of a model of two small arrays: everything of a training run but the network and data."""

import contextlib
import functools
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from groupvit_jax import parallel
from groupvit_jax.data.storage.objects import is_remote
from groupvit_jax.runs.bucket.opening import open_workdir
from groupvit_jax.train import data_position, hooks, writers
from groupvit_jax.train.checkpointer import Checkpointer, CheckpointSettings
from groupvit_jax.train.loop import run_steps
from groupvit_jax.train.prefetch import DevicePrefetcher
from groupvit_jax.train.state import TrainState
from groupvit_jax.train.stopping import StopRequest
from tests.devices import first_devices

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))


def make_mesh(data, fsdp):
    devices = first_devices(data * fsdp)
    types = (AxisType.Auto,) * 2
    return jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=types, devices=devices)


def init_state(seed=0, width=8):
    rng = np.random.default_rng(seed)
    kernel = jnp.asarray(rng.normal(size=(4, width)), jnp.float32)
    params = {"tower": {"kernel": kernel, "bias": jnp.zeros(width)}, "logit_scale": jnp.zeros(())}
    batch_stats = {"tower": {"mean": jnp.full(width, seed, jnp.float32)}}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=OPTIMIZER.init(params),
        key=jax.random.key(seed),
    )


def state_shardings(mesh, state):
    def sharding(leaf):
        spec = PartitionSpec(None, "fsdp") if leaf.ndim == 2 else PartitionSpec()
        return NamedSharding(mesh, spec)

    return jax.tree.map(sharding, state)


def on_mesh(mesh, state):
    def put(leaf, sharding):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            words = np.asarray(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(parallel.put(words, sharding))
        return parallel.put(np.asarray(leaf), sharding)

    return jax.tree.map(put, state, state_shardings(mesh, state))


def abstract(mesh, state):
    return jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
        jax.eval_shape(lambda: state),
        state_shardings(mesh, state),
    )


def make_train_step(mesh, state):
    def train_step(state, batch):
        def loss_fn(params):
            x = batch["x"] @ params["tower"]["kernel"] + params["tower"]["bias"]
            noise = jax.random.normal(jax.random.fold_in(state.key, state.step), x.shape)
            return jnp.mean((x + 0.01 * noise - 1.0) ** 2), x.mean(0)

        (loss, mean), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = OPTIMIZER.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new = TrainState(state.step + 1, params, {"tower": {"mean": mean}}, opt_state, state.key)
        return new, {"loss": loss, "gradient_norm": optax.tree.norm(gradients)}

    shardings = state_shardings(mesh, state)
    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None))


def batches(first_step, num_steps=10**6):
    """The batch of a step is a function of the step alone."""
    for step in range(first_step, num_steps):
        yield {"x": np.random.default_rng(step).normal(size=(8, 4)).astype(np.float32)}


def assert_same(a, b):
    leaves_a, tree_a = jax.tree.flatten(a)
    leaves_b, tree_b = jax.tree.flatten(b)
    assert tree_a == tree_b
    for x, y in zip(leaves_a, leaves_b, strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def run(
    workdir,
    num_steps,
    *,
    mesh=None,
    width=8,
    read=batches,
    evaluators=(),
    save_every=5,
    log_every=5,
    best_metric="",
    more_hooks=(),
    train_step=None,
    restore_step=None,
):
    """Trains as `loop.train` does, from the workdir's last checkpoint; returns the last context."""
    mesh = mesh or make_mesh(1, 1)
    settings = CheckpointSettings(save_every, keep_last=2, best_metric=best_metric)
    with contextlib.ExitStack() as stack:
        if is_bucket := is_remote(str(workdir)):
            opened = open_workdir(workdir, stack, restore_step)
            workdir = opened.folder
            more_hooks = [hooks.CheckWorkdir(*opened.checks), *more_hooks]
            opened.roll_back()
        workdir = Path(workdir)
        stop = stack.enter_context(StopRequest())
        checkpointer = Checkpointer(workdir / "checkpoints", settings, {}, is_shared=not is_bucket)
        stack.callback(checkpointer.close)
        fresh = init_state(width=width)
        state, saved = checkpointer.restore_latest(abstract(mesh, fresh)) or (
            on_mesh(mesh, fresh),
            None,
        )
        at = data_position.continue_from(saved, batch_size=8, seed=0, num_examples=100)
        writer = writers.make_writer(workdir, at.first_step, primary=jax.process_index() == 0)
        stack.callback(writer.close)
        sharding = NamedSharding(mesh, PartitionSpec("data"))
        batches_ahead = DevicePrefetcher(
            read(at.first_batch), lambda batch: {"x": parallel.put(batch["x"], sharding)}, size=2
        )
        stack.callback(batches_ahead.close)
        metrics = hooks.StepMetrics()
        return run_steps(
            hooks.StepContext(at.first_step, num_steps, state),
            train_step or make_train_step(mesh, fresh),
            batches_ahead,
            [
                hooks.LogMetrics(metrics, log_every, batch_size=8),
                hooks.Evaluate(evaluators),
                hooks.WriteMetrics(writer),
                hooks.SaveCheckpoint(checkpointer, metrics, at.after, settings),
                *more_hooks,
            ],
            metrics,
            stop,
        )


def last_state(workdir, target):
    settings = CheckpointSettings(every_steps=1, keep_last=2)
    state, _ = Checkpointer(workdir / "checkpoints", settings).restore_latest(target)
    return state


def slow_batches(first_step, began=lambda: print("training", flush=True)):
    began()
    for batch in batches(first_step):
        time.sleep(0.02)
        yield batch


def join(rank, port):
    """Makes this process one of two; it takes the other for dead after 10 s."""
    jax.distributed.initialize(
        f"localhost:{port}",
        num_processes=2,
        process_id=rank,
        heartbeat_timeout_seconds=10,
        cluster_detection_method="deactivate",
    )


class Nearness:
    """Evaluator by which the first state is the best."""

    name = "start"

    def __call__(self, variables):
        return {"nearness": -float(np.abs(np.asarray(variables["params"]["tower"]["bias"])).mean())}


def main(workdir, num_steps, width, rank="", port="", began=None, best=False, restore_step=None):
    """A process to be killed; calls `began()` when the first step is near."""
    if port:
        join(int(rank), port)
    # Two processes divide the largest array, so that both write parts of it.
    mesh = make_mesh(1, jax.process_count())
    read = functools.partial(slow_batches, began=began) if began else slow_batches
    run(
        workdir,
        int(num_steps),
        mesh=mesh,
        width=int(width),
        read=read,
        save_every=3,
        evaluators=[(Nearness(), 3)] if best else (),
        best_metric="start/nearness" if best else "",
        restore_step=restore_step,
    )


if __name__ == "__main__":  # WORKDIR NUM_STEPS WIDTH [RANK PORT]
    main(*sys.argv[1:])
