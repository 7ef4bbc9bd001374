"""The state of a training run, created directly in its shards."""

import functools
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from groupvit_jax import parallel
from groupvit_jax.typing import Array, Key, Params, PyTree

BatchShapes = Mapping[str, jax.ShapeDtypeStruct]


@struct.dataclass
class TrainState:
    """All that a run needs to go on, beside the data (whose position is the step).

    The same tree also holds shapes or shardings in place of arrays.

    Attributes:
      step: number of updates made, a scalar.
      params: the model's parameters.
      batch_stats: running statistics of BatchNorm.
      opt_state: the optimizer's state.
      key: base of all randomness; a step's noise is drawn from `fold_in(key, step)`.
      average: moving averages of "params" and "batch_stats" with `config.optimizer.ema_decay`;
        {} without it.
    """

    step: PyTree
    params: Params
    batch_stats: PyTree
    opt_state: optax.OptState
    key: PyTree
    average: PyTree = struct.field(default_factory=dict)

    @property
    def variables(self) -> PyTree:
        """Variables that are evaluated and exported: the averages, where the run keeps them."""
        return self.average or {"params": self.params, "batch_stats": self.batch_stats}


def batch_shapes(
    batch_size: int,
    image_size: int,
    packed_length: int,
    num_texts: int,
    superpixel_grid: int = 0,
    num_bank_nouns: int = 0,
) -> BatchShapes:
    """Return the shapes of the global batches of images and texts.

    Args:
      batch_size: of all devices together.
      image_size: side of the square images in pixels.
      packed_length: tokens in a row of texts.
      num_texts: of an image: its caption and its prompts.
      superpixel_grid: patches in height and width, if batches have their superpixels.
      num_bank_nouns: nouns of an image, if batches have them.
    """
    B, side, grid = batch_size, image_size, superpixel_grid
    more = {}
    if grid:
        more["superpixels"] = jax.ShapeDtypeStruct((B, grid, grid), jnp.int32)
    if num_bank_nouns:
        more["bank_nouns"] = jax.ShapeDtypeStruct((B, num_bank_nouns), jnp.int32)
    # Images as bytes: a quarter of float32's traffic; the step normalises them.
    return {
        "image": jax.ShapeDtypeStruct((B, side, side, 3), jnp.uint8),
        "text": jax.ShapeDtypeStruct((B, packed_length), jnp.int32),
        "text_ends": jax.ShapeDtypeStruct((B, num_texts), jnp.int32),
        "text_ids": jax.ShapeDtypeStruct((B, num_texts), jnp.int32),
        "text_overflow": jax.ShapeDtypeStruct((B,), jnp.int32),
        "index": jax.ShapeDtypeStruct((B,), jnp.int32),
        **more,
    }


def masked_batch_shapes(batch_size: int, image_size: int) -> BatchShapes:
    """Return the shapes of the global batches of images and masks; see `batch_shapes`."""
    B, side = batch_size, image_size
    return {
        "image": jax.ShapeDtypeStruct((B, side, side, 3), jnp.uint8),
        "mask": jax.ShapeDtypeStruct((B, side, side), jnp.uint8),
        "index": jax.ShapeDtypeStruct((B,), jnp.int32),
    }


def init_variables(model: nn.Module, key: Key[Array, ""], shapes: BatchShapes) -> PyTree:
    """Return the model's variables, {"params", maybe "batch_stats"}.

    Args:
      model: a model with `TwoTower`'s call; without texts in the batch, with one of images alone.
      key: of the random initial values.
      shapes: of a batch; parameters depend on the images' size only.
    """
    # One example of zeros: sizes and initial values of parameters don't depend on the batch.
    images = jnp.zeros((1, *shapes["image"].shape[1:]))
    if "text" not in shapes:
        return model.init(key, images)
    text = jnp.zeros((1, shapes["text"].shape[1]), jnp.int32)
    return model.init(key, images, text, jnp.zeros((1, 1), jnp.int32), train=False)


def abstract_params(model: nn.Module, shapes: BatchShapes) -> Params:
    """Return the shapes of the parameters, without computing anything."""
    init = functools.partial(init_variables, model, shapes=shapes)
    # Any key will do for shapes.
    return jax.eval_shape(init, jax.random.key(0))["params"]


def init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    shapes: BatchShapes,
    *,
    averaged: bool = False,
) -> TrainState:
    """Return the state before the first step; see `create_sharded_state` for the arguments."""
    # Apart, so that no noise repeats a draw of the initial values.
    params_key, noise_key = jax.random.split(key)
    variables = init_variables(model, params_key, shapes)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(variables["params"]),
        key=noise_key,
        average=start_average(variables) if averaged else {},
    )


def start_average(variables: PyTree) -> PyTree:
    """Return copies of "params" and "batch_stats": a step donates both, each with its buffers."""
    copies: PyTree = jax.tree.map(jnp.copy, variables)
    return {"params": copies["params"], "batch_stats": copies.get("batch_stats", {})}


def abstract_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    shapes: BatchShapes,
    mesh: Mesh,
    rules: parallel.Rules,
    *,
    averaged: bool = False,
) -> TrainState:
    """Return the state's shapes with their shardings: what to restore a checkpoint into.

    Raises:
      ValueError: the rules don't fit the parameters or the mesh.
    """
    init = functools.partial(init_state, model, optimizer, shapes=shapes, averaged=averaged)
    tree = jax.eval_shape(init, jax.random.key(0))
    shardings = parallel.shardings(mesh, parallel.partition_specs(tree, rules), tree)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )


def create_sharded_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    shapes: BatchShapes,
    mesh: Mesh,
    rules: parallel.Rules,
    *,
    averaged: bool = False,
) -> tuple[TrainState, PyTree]:
    """Create the state on the mesh; no leaf ever exists unsharded.

    Args:
      model: a model with `TwoTower`'s call.
      optimizer: what `optim.make_optimizer` returns.
      key: of the initial values and of all later noise.
      shapes: of a batch.
      mesh: the device mesh.
      rules: `config.parallel.rules`.
      averaged: whether the state holds moving averages.

    Returns:
      The state, the same on every mesh, and its shardings as a tree of the same structure.

    Raises:
      ValueError: the rules don't fit the parameters or the mesh.
    """
    abstract = abstract_state(model, optimizer, shapes, mesh, rules, averaged=averaged)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    init = functools.partial(init_state, model, optimizer, shapes=shapes, averaged=averaged)
    return jax.jit(init, out_shardings=shardings)(key), shardings
