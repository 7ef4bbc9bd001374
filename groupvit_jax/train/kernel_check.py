"""Start-up check of the kernels, on the devices that will train: they must compute what XLA does.

The kernels are tested in an interpreter, and compiled for chips by a compiler that can change. A
wrong number in one would not stop a run, only spoil it.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from groupvit_jax import parallel
from groupvit_jax.models.fused_attention import has_cudnn
from groupvit_jax.models.kernels import stacks
from groupvit_jax.runs.configuration import changed
from groupvit_jax.train.state import TrainState
from groupvit_jax.train.step import LossFn
from groupvit_jax.train.tasks import Task
from groupvit_jax.typing import Array, Batch, Float, PyTree

logger = logging.getLogger(__name__)

PLAIN = {"model.kernels": "plain"}
ROWS_A_DEVICE = 8  # enough for BatchNorm; a hundredth of a batch that fills a device
# Kernels and plain code round differently, so both are compared with float32: a kernel's error may
# be this many times the plain code's, and `EXACT` of the reference where that has next to none. By
# chance one is larger than the other: 0.9 to 1.6 times, in bfloat16 at widths of 32 and 64.
MOST_TIMES_THE_PLAIN_ERROR = 2.0
EXACT = 2.0**-9  # half a unit in bfloat16's last place


@dataclasses.dataclass(frozen=True)
class Errors:
    """Errors of a step's loss and gradients against float32, relative to these.

    Attributes:
      loss: by kernels.
      gradients: by kernels; of the norms, as below.
      plain_loss: by the plain code, in the type of the computation.
      plain_gradients: by the plain code.
    """

    loss: float
    gradients: float
    plain_loss: float
    plain_gradients: float

    @property
    def are_of_rounding(self) -> bool:
        """Whether the kernels' errors are rounding, going by the plain code's; NaN is none."""
        most = MOST_TIMES_THE_PLAIN_ERROR
        # The error of one number, the loss, may be small by chance: that of gradients is not.
        plain_loss = max(self.plain_loss, self.plain_gradients)
        return (
            self.loss <= most * plain_loss + EXACT
            and self.gradients <= most * self.plain_gradients + EXACT
        )


def checked_loss(
    task: Task, model: Any, config: ConfigDict, mesh: Mesh, state: TrainState, batch: Batch
) -> LossFn:
    """Return the task's loss, computed by kernels only if these agree with the plain code.

    Without kernels on this mesh nothing is checked, nor is a kernel that the configuration demands
    (`model.fused_attention`). All processes call this together.

    Args:
      task: what is learnt.
      model: of the task.
      config: the whole configuration.
      mesh: the devices.
      state: to compute with; not changed.
      batch: a global batch, of which some rows are used.
    """
    is_plain = config.model.get("kernels", "auto") == "plain"
    if is_plain or (stacks.stack_fn(mesh) is None and not has_cudnn(mesh.devices.flat[0])):
        return task.make_loss(model, config, mesh)

    def make_loss(changes: Mapping[str, Any]) -> LossFn:
        other = changed(config, changes)
        return task.make_loss(task.build_model(other), other, mesh)

    errors = compare(make_loss, mesh, state, batch)
    found = (errors.loss, errors.gradients, errors.plain_loss, errors.plain_gradients)
    if errors.are_of_rounding:
        logger.info(
            "kernels agree with the plain code: errors against float32 are %.1e of the loss and "
            "%.1e of the gradients, the plain code's %.1e and %.1e", *found,
        )  # fmt: skip
        return task.make_loss(model, config, mesh)
    logger.warning(
        "kernels are wrong by %.3g of the loss and %.3g of the gradients, the plain code by %.3g "
        "and %.3g: training without kernels, as with config.model.kernels='plain'", *found,
    )  # fmt: skip
    return task.make_loss(model, changed(config, PLAIN), mesh)


def compare(
    make_loss: Callable[[Mapping[str, Any]], LossFn], mesh: Mesh, state: TrainState, batch: Batch
) -> Errors:
    """Return the errors of kernels and plain code in one step's loss and gradients.

    Args:
      make_loss: makes the loss with changes of the configuration, by dotted field.
      mesh: the devices.
      state: to compute with.
      batch: a global batch, of which some rows are used.
    """
    common = {
        "train.micro_batch_size": None,
        "parallel.reduce_dtype": "auto",
        "model.fused_attention": False,
        # A hard assignment turns the smallest difference of two nearly equal groups into a large
        # one of the gradients.
        "model.image.assignment": "soft",
    }
    # Scanned, the plain blocks are computed as ever and compiled in half the time.
    plain = common | PLAIN | {"model.scan_layers": True}
    exact = make_loss(plain | {"model.dtype": "float32"})
    rounded = [make_loss(common), make_loss(plain)]

    def errors(state: TrainState, batch: Batch) -> list[tuple[Float[Array, ""], Float[Array, ""]]]:
        rows = jax.tree.map(lambda x: _first_rows(x, mesh), batch)

        def step(loss_fn: LossFn) -> tuple[Float[Array, ""], PyTree]:
            return jax.value_and_grad(lambda p: loss_fn(p, state, rows)[0])(state.params)

        with jax.default_matmul_precision("highest"):  # TPUs multiply float32 in bfloat16 otherwise
            loss, gradients = step(exact)
        found = []
        for loss_fn in rounded:
            value, slopes = step(loss_fn)
            apart = jax.tree.map(jnp.subtract, slopes, gradients)
            error = optax.tree.norm(apart) / optax.tree.norm(gradients)
            found.append((jnp.abs(value - loss) / jnp.abs(loss), error))
        return found

    out = parallel.replicated(mesh)
    found = jax.device_get(jax.jit(errors, out_shardings=out)(state, batch))
    (loss, gradients), (plain_loss, plain_gradients) = [map(float, each) for each in found]
    return Errors(loss, gradients, plain_loss, plain_gradients)


def _first_rows(x: Array, mesh: Mesh) -> Array:
    """Return the first rows of each device's share of a batch, where they are."""
    shares = x.reshape(parallel.num_batch_shards(mesh), -1, *x.shape[1:])  # [devices, rows, ...]
    rows = shares[:, :ROWS_A_DEVICE].reshape(-1, *x.shape[1:])
    return jax.lax.with_sharding_constraint(rows, parallel.batch_sharding(mesh))
