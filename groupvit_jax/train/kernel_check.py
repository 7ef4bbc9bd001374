"""Start-up check of the fused blocks, on the devices that will train: they must agree with XLA's.

The kernels are tested in an interpreter, and compiled for chips by a compiler that can change. A
wrong number in one would not stop a run, only spoil it.
"""

import dataclasses
import logging
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from groupvit_jax import parallel
from groupvit_jax.models.kernels import stacks
from groupvit_jax.train.state import TrainState
from groupvit_jax.train.step import LossFn
from groupvit_jax.train.tasks import Task
from groupvit_jax.typing import Array, Batch, Float

logger = logging.getLogger(__name__)

ROWS_A_DEVICE = 8  # enough for BatchNorm; a hundredth of a batch that fills a device
# Relative. In bfloat16 (and TPUs multiply float32 in bfloat16, too) both sides round: in a model of
# width 32 by 7 to 19 % of the gradients' norm, where a missing term of GELU's slope changes 16 %.
# Such narrow models may fall back without a fault, which costs speed only.
LARGEST_DIFFERENCE = 0.1


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far the kernels are from the plain blocks.

    Attributes:
      loss: of the losses, over the plain one.
      gradients: norm of the gradients' difference, over the norm of the plain ones.
    """

    loss: float
    gradients: float

    @property
    def is_small(self) -> bool:
        """Whether rounding explains it; NaN is no rounding."""
        return self.loss <= LARGEST_DIFFERENCE and self.gradients <= LARGEST_DIFFERENCE


def checked_loss(
    task: Task, model: Any, config: ConfigDict, mesh: Mesh, state: TrainState, batch: Batch
) -> LossFn:
    """Return the task's loss, computed by kernels only if these agree with the plain blocks.

    Without kernels on this mesh nothing is checked. All processes call this together.

    Args:
      task: what is learnt.
      model: of the task.
      config: the whole configuration.
      mesh: the devices.
      state: to compute with; not changed.
      batch: a global batch, of which some rows are used.
    """
    is_plain = config.model.get("kernels", "auto") == "plain"
    if is_plain or stacks.stack_fn(mesh) is None:
        return task.make_loss(model, config, mesh)
    found = compare(task, config, mesh, state, batch)
    if found.is_small:
        logger.info(
            "fused blocks agree with the plain ones: loss to %.1e, gradients to %.1e",
            found.loss, found.gradients,
        )  # fmt: skip
        return task.make_loss(model, config, mesh)
    logger.warning(
        "fused blocks differ from the plain ones by %.3g of the loss and %.3g of the gradients "
        "(expected at most %g): training without them, as with config.model.kernels='plain'",
        found.loss, found.gradients, LARGEST_DIFFERENCE,
    )  # fmt: skip
    return task.make_loss(model, _changed(config, {"model.kernels": "plain"}), mesh)


def compare(
    task: Task, config: ConfigDict, mesh: Mesh, state: TrainState, batch: Batch
) -> Difference:
    """Return the difference of kernels and plain blocks in one step's loss and gradients."""
    common = {
        "train.micro_batch_size": None,
        "model.fused_attention": False,
        # A hard assignment turns the smallest difference of two nearly equal groups into a large
        # one of the gradients.
        "model.image.assignment": "soft",
    }
    # Scanned, the plain blocks are computed as ever and compiled in half the time.
    plain = {"model.kernels": "plain", "model.scan_layers": True}
    loss_fns = []
    for changes in (common, common | plain):
        changed = _changed(config, changes)
        loss_fns.append(task.make_loss(task.build_model(changed), changed, mesh))

    def differences(state: TrainState, batch: Batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
        rows = jax.tree.map(lambda x: _first_rows(x, mesh), batch)
        (fused, fused_gradients), (plain, gradients) = (
            jax.value_and_grad(lambda p, f=loss_fn: f(p, state, rows)[0])(state.params)
            for loss_fn in loss_fns
        )
        apart = jax.tree.map(jnp.subtract, fused_gradients, gradients)
        return (
            jnp.abs(fused - plain) / jnp.abs(plain),
            optax.tree.norm(apart) / optax.tree.norm(gradients),
        )

    out = parallel.replicated(mesh)
    loss, gradients = jax.device_get(jax.jit(differences, out_shardings=out)(state, batch))
    return Difference(float(loss), float(gradients))


def _first_rows(x: Array, mesh: Mesh) -> Array:
    """Return the first rows of each device's share of a batch, where they are."""
    shares = x.reshape(parallel.num_batch_shards(mesh), -1, *x.shape[1:])
    rows = shares[:, :ROWS_A_DEVICE].reshape(-1, *x.shape[1:])
    return jax.lax.with_sharding_constraint(rows, parallel.batch_sharding(mesh))


def _changed(config: ConfigDict, changes: dict[str, Any]) -> ConfigDict:
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.update_from_flattened_dict(changes)
    return changed
