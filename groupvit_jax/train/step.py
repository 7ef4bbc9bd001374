"""One jitted training step over the global batch."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from groupvit_jax import losses, optim, parallel
from groupvit_jax.models import fused_attention, preprocess
from groupvit_jax.models.blocks import with_execution
from groupvit_jax.models.grouping import resize_maps
from groupvit_jax.models.layers import example_keys
from groupvit_jax.models.segmentation import SegmentationModel
from groupvit_jax.train import grad_cache
from groupvit_jax.train.state import TrainState
from groupvit_jax.typing import Array, Batch, Float, ImageFeatures, Int, Key, PyTree, TwoTowerOutput

Metrics = dict[str, Float[Array, ""]]
NOISE = ("drop_path", "gumbel", "random_erasing")
LOSSES = ("global", "multi_label")
LOCAL_WORDS = ("tokens", "prompts")
IDENTICAL_TEXTS = ("negatives", "positives")
# (params, state, global batch) -> loss, (batch statistics after it, metrics)
LossFn = Callable[[PyTree, TrainState, Batch], tuple[Float[Array, ""], tuple[PyTree, Metrics]]]
MakeLoss = Callable[[Any, ConfigDict, Mesh], LossFn]


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: ConfigDict,
    mesh: Mesh,
    state_shardings: PyTree,
    make_loss: MakeLoss | None = None,
) -> Any:
    """Returns the jitted `(state, batch) -> (state, metrics)`; the given state is consumed.

    Args:
      model: what `make_loss` takes.
      optimizer: what `optim.make_optimizer` returns.
      schedule: the optimizer's learning rate, for the metrics.
      config: the whole configuration; `optimizer.groups` and what `make_loss` reads are used.
      mesh: the device mesh.
      state_shardings: what `create_sharded_state` returns beside the state.
      make_loss: of the task; `make_contrastive_loss` by default.

    Returns:
      A jitted function of the state and a global batch (see `typing.Batch`). Its metrics are
      float32 scalars of the step: those of the loss, `gradient_norm` (before clipping),
      `update_norm`, `parameter_norm` (after the update: it is finite if the new parameters are) and
      `learning_rate`.
    """
    loss_of = (make_loss or make_contrastive_loss)(model, config, mesh)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        def loss_fn(params: PyTree) -> tuple[Float[Array, ""], tuple[PyTree, Metrics]]:
            params = optim.stop_frozen_gradients(params, config.optimizer.groups)
            return loss_of(params, state, batch)

        gradients, (batch_stats, metrics) = jax.grad(loss_fn, has_aux=True)(state.params)
        metrics["learning_rate"] = schedule(state.step)
        state, norms = apply_gradients(state, optimizer, gradients, batch_stats)
        return state, jax.tree.map(jnp.float32, metrics | norms)

    return jax.jit(
        train_step,
        in_shardings=(state_shardings, parallel.batch_sharding(mesh)),
        out_shardings=(state_shardings, parallel.replicated(mesh)),
        donate_argnums=0,
    )


def make_contrastive_loss(model: nn.Module, config: ConfigDict, mesh: Mesh) -> LossFn:
    """Returns the loss of images and their texts.

    Args:
      model: a model with `TwoTower`'s `encode` and `project`.
      config: the whole configuration; `loss`, `train.micro_batch_size` and
        `data.augment.random_erasing` are used.
      mesh: the device mesh.

    Returns:
      A function whose metrics are `loss`, for each loss `global/...`, `multi_label/...` and
      `local/...` the weightless `loss` and what `losses` yields, `text_overflow` (share of the
      images with a prompt that did not fit) and `groups_in_use/stage_I`.
    """
    if config.train.micro_batch_size is None:  # else no axis of the batch is left to XLA
        model = on_mesh(model, config, mesh)
    encode: grad_cache.Encode = functools.partial(
        encode_examples,
        model,
        erasing=config.data.augment.random_erasing,
        parts=parts_to_align(config.loss),
    )
    if config.train.micro_batch_size is not None:
        encode = grad_cache.in_micro_batches(encode, config.train.micro_batch_size, mesh)

    def loss_fn(
        params: PyTree, state: TrainState, batch: Batch
    ) -> tuple[Float[Array, ""], tuple[PyTree, Metrics]]:
        rows = {name: batch[name] for name in ("image", "text", "text_ends")}
        rows["noise_ids"] = noise_ids(batch, mesh)
        features = encode(params, noise_keys(state), rows)
        output, updated = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            features.image,
            features.text,
            **features.parts,
            train=True,
            mutable=["batch_stats"],
            method="project",
        )
        loss, metrics = contrastive_loss(output, config.loss, mesh, batch)
        metrics["text_overflow"] = (batch["text_overflow"] > 0).mean()
        return loss, (updated["batch_stats"], metrics | mean_in_use(features.groups_in_use))

    return loss_fn


def make_segmentation_loss(model: SegmentationModel, config: ConfigDict, mesh: Mesh) -> LossFn:
    """Returns the loss of images and their masks, `losses.segmentation_loss` at full resolution.

    Args:
      model: the image tower with its head.
      config: the whole configuration; `train` is used.
      mesh: the device mesh.

    Returns:
      A function whose metrics are `loss`, `labelled_pixels` (the share that counts) and
      `groups_in_use/stage_I`.
    """
    model = on_mesh(model, config, mesh)

    def loss_fn(
        params: PyTree, state: TrainState, batch: Batch
    ) -> tuple[Float[Array, ""], tuple[PyTree, Metrics]]:
        keys = noise_keys(state)
        images = preprocess.normalize(batch["image"])
        output: Any = model.apply(
            {"params": params},
            images,
            noise_ids=noise_ids(batch, mesh),
            rngs={name: keys[name] for name in ("drop_path", "gumbel")},
        )
        _, H, W, _ = images.shape
        maps = resize_maps(output.maps, (H, W), model.image_encoder.patch_size)
        loss, labelled = losses.segmentation_loss(maps, output.logits, batch["mask"])
        metrics = {"loss": loss, "labelled_pixels": labelled}
        in_use = mean_in_use(groups_in_use(output.features))
        return loss, (state.batch_stats, metrics | in_use)

    return loss_fn


class Features(NamedTuple):
    """What the encoders make of examples, before projectors and losses need the whole batch.

    Attributes:
      image: embeddings of the images.
      text: features of their texts.
      groups_in_use: see `groups_in_use`.
      parts: those that the local alignment compares: "segments" [B, G, C] and, unless prompts are
        its words, "tokens" [B, W, Q].
    """

    image: Float[Array, "B C"]
    text: Float[Array, "B N Q"]
    groups_in_use: dict[str, Int[Array, "B"]]
    parts: dict[str, Float[Array, "B _ _"]]


def parts_to_align(config: ConfigDict) -> tuple[str, ...]:
    """Returns which parts of the features the losses of `config.loss` need."""
    if not config.local_weight:
        return ()
    return ("segments", "tokens") if config.local_words == "tokens" else ("segments",)


def encode_examples(
    model: nn.Module,
    params: PyTree,
    keys: PyTree,
    rows: Batch,
    erasing: float,
    parts: tuple[str, ...] = (),
) -> Features:
    """Normalises, erases and encodes examples, each with its own noise.

    Args:
      model: a model with `TwoTower.encode`.
      params: of the model.
      keys: what `noise_keys` returns.
      rows: "image", "text" and "text_ends" of a batch or a part of it, and "noise_ids", the
        examples' positions in the global batch.
      erasing: probability of random erasing.
      parts: what `parts_to_align` returns.
    """
    noise_ids = rows["noise_ids"]
    erasing_keys = example_keys(keys["random_erasing"], noise_ids)
    images = preprocess.normalize(rows["image"])
    images = preprocess.random_erasing(erasing_keys, images, erasing)
    encoded: Any = model.apply(
        {"params": params},
        images,
        rows["text"],
        rows["text_ends"],
        noise_ids=noise_ids,
        rngs={name: keys[name] for name in ("drop_path", "gumbel")},
        method="encode",
        **({"caption_tokens": True} if "tokens" in parts else {}),
    )
    features, text = encoded
    text, tokens = jnp.split(text, [rows["text_ends"].shape[1]], axis=1)
    found = {"segments": features.segments, "tokens": tokens}
    kept = {name: found[name] for name in parts}
    return Features(features.embedding, text, groups_in_use(features), kept)


def apply_gradients(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    gradients: PyTree,
    batch_stats: PyTree,
) -> tuple[TrainState, Metrics]:
    """Returns the state after the step, and the norms of gradients, update and new parameters."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    norms = {
        "gradient_norm": optax.tree.norm(gradients),
        "update_norm": optax.tree.norm(updates),
        "parameter_norm": optax.tree.norm(params),
    }
    return TrainState(state.step + 1, params, batch_stats, opt_state, state.key), norms


def on_mesh(model: Any, config: ConfigDict, mesh: Mesh) -> Any:
    """Returns the model as it runs on the mesh: tokens stay on their images' devices in all blocks.

    Args:
      model: with the towers of `TwoTower`, or one of them.
      config: the whole configuration; `train.fused_attention` is used.
      mesh: the device mesh.
    """
    sharding = parallel.batch_sharding(mesh)
    changes: dict[str, Any] = {"constrain": lambda x: jax.lax.with_sharding_constraint(x, sharding)}
    if config.train.fused_attention:
        kernel = fused_attention.KERNELS[mesh.devices.flat[0].platform]
        spec = PartitionSpec(parallel.BATCH_AXES, "tensor")  # XLA can't divide a kernel's work
        changes["attention_fn"] = jax.shard_map(
            kernel, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
        )
    return with_execution(model, **changes)


def noise_ids(batch: Batch, mesh: Mesh) -> Int[Array, "B"]:
    """Returns by which number each example draws its noise: its position in the global batch."""
    ids = jnp.arange(len(batch["image"]))
    return jax.lax.with_sharding_constraint(ids, parallel.batch_sharding(mesh))


def noise_keys(state: TrainState) -> dict[str, Key[Array, ""]]:
    """Returns the step's keys by kind of noise: a pure function of the run's key and the step."""
    keys = jax.random.split(jax.random.fold_in(state.key, state.step), len(NOISE))
    return dict(zip(NOISE, keys, strict=True))


def contrastive_loss(
    output: TwoTowerOutput, config: ConfigDict, mesh: Mesh, batch: Batch
) -> tuple[Float[Array, ""], Metrics]:
    """Returns the weighted sum of the losses and their metrics.

    They are the global loss, where there are prompts the multi-label loss, and with a weight the
    local alignment.

    Args:
      output: of the model for the global batch; text 0 of an image is its caption, the others its
        prompts.
      config: `config.loss`.
      mesh: the device mesh.
      batch: whose "text_ids" tell which texts are identical and "text_ends" which words there are;
        neither is needed for the published losses.
    """
    ids = batch["text_ids"] if config.identical_texts == "positives" else None
    num_losses = 1 if output.text.shape[1] == 1 else 2
    scales = [output.logit_scale, output.multi_label_logit_scale][:num_losses]
    biases = None
    if config.kind == "sigmoid":
        biases = [output.logit_bias, output.multi_label_logit_bias][:num_losses]

    def by_loss(texts: Array) -> list[Array]:
        return [texts[:, :1], texts[:, 1:]][:num_losses]

    def on_device(rows: PyTree, scales: PyTree, biases: PyTree) -> list[Any]:
        image, text, ids = rows
        return losses.contrastive_losses(
            image,
            by_loss(text),
            scales,
            biases,
            comparison(config),
            None if ids is None else by_loss(ids),
        )

    by_row, alike = PartitionSpec(parallel.BATCH_AXES), PartitionSpec()
    compare = jax.shard_map(on_device, mesh=mesh, in_specs=(by_row, alike, alike), out_specs=alike)
    rows = (output.image, output.text, ids)
    found = dict(zip(LOSSES, compare(rows, scales, biases), strict=False))
    if config.local_weight:
        found["local"] = local_loss(output, config, mesh, batch)
    total: Float[Array, ""] = jnp.float32(0)
    metrics: Metrics = {}
    for name, (value, more) in found.items():
        total += config[f"{name}_weight"] * value
        metrics |= {f"{name}/loss": value} | {f"{name}/{key}": m for key, m in more.items()}
    return total, metrics | {"loss": total}


def local_loss(
    output: TwoTowerOutput, config: ConfigDict, mesh: Mesh, batch: Batch
) -> tuple[Float[Array, ""], Metrics]:
    """Returns the weightless local alignment; see `contrastive_loss` for the arguments.

    It has the global loss's temperature, with which groups are compared with class names, too.
    """
    ends, ids = batch["text_ends"], batch["text_ids"]
    if output.tokens is not None:
        words = output.tokens
        mask = jnp.arange(1, 1 + words.shape[1]) < ends[:, :1]
        ids = ids[:, 0]
    else:
        words = output.text[:, 1:]
        mask = ends[:, 1:] != ends[:, :1]  # else the caption stands in for a prompt
        ids = jnp.where(mask, ids[:, 1:], 0).sum(axis=1)  # the same for the same set of words
    given = (output.segments, words, mask, ids if config.identical_texts == "positives" else None)

    def on_device(rows: PyTree, scale: Array) -> Any:
        segments, words, mask, ids = rows
        return losses.local_alignment_loss(segments, words, mask, scale, comparison(config), ids)

    by_row, alike = PartitionSpec(parallel.BATCH_AXES), PartitionSpec()
    compare = jax.shard_map(on_device, mesh=mesh, in_specs=(by_row, alike), out_specs=alike)
    return compare(given, output.logit_scale)


def comparison(config: ConfigDict) -> losses.Comparison:
    """Returns what `config.loss` says of where and how losses are computed."""
    return losses.Comparison(config.kind, parallel.BATCH_AXES, config.exchange, config.block_size)


def groups_in_use(features: ImageFeatures) -> dict[str, Int[Array, "B"]]:
    """Returns by stage how many groups of each image are the best of some segment."""
    counts = {}
    for stage, assignment in enumerate(features.assignments):
        best = jax.nn.one_hot(assignment.argmax(axis=1), assignment.shape[1], dtype=bool)
        counts[f"stage_{stage}"] = best.any(axis=1).sum(axis=1)
    return counts


def mean_in_use(counts: dict[str, Int[Array, "B"]]) -> Metrics:
    """Returns the metrics of `groups_in_use`'s counts."""
    return {f"groups_in_use/{stage}": count.mean() for stage, count in counts.items()}
