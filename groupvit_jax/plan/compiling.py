"""Compiles the real training step for hardware you don't have."""

import dataclasses
import math
import re
import time
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from groupvit_jax import optim, parallel
from groupvit_jax.plan.chips import GIB
from groupvit_jax.plan.hardware import Topology
from groupvit_jax.train import state as state_lib
from groupvit_jax.train.grad_cache import check_micro_batch_size
from groupvit_jax.train.progress import telling
from groupvit_jax.train.setup import by_device_setting, check_fused_attention
from groupvit_jax.train.step import make_train_step
from groupvit_jax.train.tasks import task_of
from groupvit_jax.typing import PyTree

_UNITS = {"": 1.0, "K": 2.0**10, "M": 2.0**20, "G": GIB, "T": 2.0**40}
_SIZE = r"([\d.]+)([KMGT]?)"
# XLA's out-of-memory messages: of the whole program, and of its temporaries alone.
_NEEDED = re.compile(rf"Used {_SIZE}i?B? of {_SIZE}i?B? hbm|\({_SIZE}\) exceeds available HBM")
# Triton chooses the tiles of its products by timing them, for which there is no device here; cuBLAS
# computes them instead.
_GPU_OPTIONS = {"xla_gpu_enable_triton_gemm": False}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one chip's memory by use.

    Attributes:
      parameters: of the model, in float32.
      optimizer: both moments of AdamW.
      batch: uint8 images and tokens of one step.
      activations: temporaries of the step, gradients included.
      program: the compiled step itself.
      other: BatchNorm's statistics, results that replace no input, padding of layouts.
      available: to a program.
    """

    parameters: float
    optimizer: float
    batch: float
    activations: float
    program: float
    other: float
    available: float

    @property
    def total(self) -> float:
        """Sum of all uses."""
        kinds = (self.parameters, self.optimizer, self.batch, self.activations, self.program)
        return sum(kinds) + self.other

    @property
    def fits(self) -> bool:
        """Whether the sum is available."""
        return self.total <= self.available


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """The training step as XLA compiled it.

    Attributes:
      mesh_shape: size of each axis by name.
      slice_of: the slice, or host of GPUs, of each device of the mesh, in its order.
      memory: of one chip.
      text: the program; empty if it does not fit, since XLA then returns none.
      state_bytes: of the whole training state, over all chips: the size of a checkpoint.
      seconds: wall time of tracing and compiling.
      cpu_seconds: of all their threads; hardly depends on what else the machine does.
    """

    mesh_shape: dict[str, int]
    slice_of: tuple[int, ...]
    memory: Memory
    text: str
    state_bytes: float
    seconds: float
    cpu_seconds: float


def compile_step(config: ConfigDict, topology: Topology) -> CompiledStep:
    """Compile the step that training with `config` would run on `topology`; allocates nothing.

    Raises:
      ValueError: the mesh or the sharding rules don't fit the topology, the batch can't be
        divided, or there is no such task.
    """
    started, cpu_started = time.monotonic(), time.process_time()
    with telling(f"{topology}, batch {config.train.batch_size}: compiling, which takes minutes"):
        lowered, mesh, state, batch = lower_step(config, topology)
        compiled, needed = _compile(lowered, topology)
    return CompiledStep(
        mesh_shape=dict(mesh.shape),
        slice_of=tuple(topology.island_of(device) for device in mesh.devices.flat),
        memory=_memory(state, batch, topology, compiled, needed),
        text="" if compiled is None else compiled.as_text(),
        state_bytes=float(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))),
        seconds=time.monotonic() - started,
        cpu_seconds=time.process_time() - cpu_started,
    )


def lower_step(
    config: ConfigDict, topology: Topology
) -> tuple[Any, Mesh, state_lib.TrainState, PyTree]:
    """Return the traced step, its mesh, and the shapes and shardings of its state and batch.

    Raises:
      ValueError: see `compile_step`.
    """
    mesh = parallel.make_mesh(config.parallel.mesh.to_dict(), topology.devices)
    parallel.check_batch_size(config.train.batch_size, mesh)
    check_micro_batch_size(config.train.micro_batch_size, config.train.batch_size, mesh)
    task = task_of(config)
    model: Any = task.build_model(config)
    shapes = task.batch_shapes(config)
    if config.model.fused_attention:
        by_device = by_device_setting(config.train.micro_batch_size, config.parallel.reduce_dtype)
        check_fused_attention(model.image_encoder, mesh, by_device)
    # Any length will do: it is a constant of the program, not a part of its shape.
    schedule = optim.make_schedule(config.optimizer.learning_rate, num_steps=2, warmup_steps=1)
    params = state_lib.abstract_params(model, shapes)
    optimizer = optim.make_optimizer(config.optimizer, schedule, params)
    rules = config.parallel.rules
    # Absent in configurations recorded before there was an average.
    decay = config.optimizer.get("ema_decay", 0.0)
    state = state_lib.abstract_state(model, optimizer, shapes, mesh, rules, averaged=bool(decay))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    by_example = parallel.batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=by_example)
        for name, leaf in shapes.items()
    }
    loss_fn, groups = task.make_loss(model, config, mesh), config.optimizer.groups
    step = make_train_step(loss_fn, optimizer, schedule, mesh, shardings, groups, decay)
    return step.lower(state, batch), mesh, state, batch


def _compile(lowered: Any, topology: Topology) -> tuple[Any, float]:
    """Return the program, or None and the bytes that it needs of a device's memory."""
    try:
        return lowered.compile(_GPU_OPTIONS if topology.chip.gpu else None), 0.0
    except jax.errors.JaxRuntimeError as error:
        if (needed := needed_bytes(str(error))) is None:
            raise
        return None, needed


def needed_bytes(message: str) -> float | None:
    """Return the bytes that a program needs by XLA's message; None for any other message."""
    if "RESOURCE_EXHAUSTED" not in message or (found := _NEEDED.search(message)) is None:
        return None
    used, unit = (found[1], found[2]) if found[1] else (found[5], found[6])
    return float(used) * _UNITS[unit]


def _memory(
    state: state_lib.TrainState, batch: PyTree, topology: Topology, compiled: Any, needed: float
) -> Memory:
    """Return the memory of a whole chip, which may be several devices."""
    devices = topology.chip.devices
    parameters, optimizer, examples, rest = (
        float(devices * _shard_bytes(tree))
        for tree in (state.params, state.opt_state, batch, (state.batch_stats, state.average))
    )
    known = parameters + optimizer + examples
    program = 0.0
    if compiled is None:
        activations = devices * needed - known - rest
    else:
        analysis = compiled.memory_analysis()
        activations = float(devices * analysis.temp_size_in_bytes)
        program = float(devices * analysis.generated_code_size_in_bytes)
        new = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
        rest = devices * (analysis.argument_size_in_bytes + new) - known
    return Memory(
        parameters=parameters,
        optimizer=optimizer,
        batch=examples,
        activations=activations,
        program=program,
        other=rest,
        available=topology.chip.memory_bytes,
    )


def _shard_bytes(tree: PyTree) -> int:
    """Return the bytes of one device's shards."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
