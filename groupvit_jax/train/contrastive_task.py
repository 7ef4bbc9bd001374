"""The contrastive task: images and their texts, encoded and compared over the global batch."""

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from groupvit_jax import losses, parallel
from groupvit_jax.data.text.noun_bank import read_noun_bank
from groupvit_jax.models import preprocess
from groupvit_jax.models.layers import example_keys
from groupvit_jax.train import grad_cache
from groupvit_jax.train.forward import (
    batch_means,
    group_statistics,
    noise_ids,
    noise_keys,
    on_mesh,
    patch_groups,
)
from groupvit_jax.train.methods import distillation, mixing
from groupvit_jax.train.methods.settings import LossSettings
from groupvit_jax.train.methods.words import local_loss, pooled_loss
from groupvit_jax.train.state import TrainState
from groupvit_jax.train.step import LossFn, Metrics
from groupvit_jax.typing import Array, Batch, Float, PyTree, TwoTowerOutput

LOSSES = ("global", "multi_label")


def make_contrastive_loss(model: nn.Module, config: ConfigDict, mesh: Mesh) -> LossFn:
    """Return the loss of images and their texts.

    Encoders see each example alone; projectors (BatchNorm) and losses see the global batch: the cut
    that micro-batches need (`grad_cache`).

    Args:
      model: a model with `TwoTower`'s `encode` and `project`.
      config: the whole configuration; `loss`, `train.micro_batch_size`, `parallel.reduce_dtype`,
        `data.augment.random_erasing` and `data.noun_bank` are used.
      mesh: the device mesh.

    Returns:
      A function whose metrics are `loss`, for each loss (`global/...`, ...) its unweighted `loss`
      and metrics, `text_overflow` (share of the images with a prompt that did not fit) and those
      of `group_statistics`.
    """
    settings = LossSettings(**config.loss)
    bank = _read_bank(settings, config.data.noun_bank, config.model.projector.output_dim)
    model, encode, encode_teacher = _make_encoders(
        model, settings, mesh, micro_batch_size=config.train.micro_batch_size,
        # Fields are absent in configurations recorded before they existed.
        reduce_dtype=config.parallel.get("reduce_dtype", "auto"),
        kernels=config.model.get("kernels", "auto"), fused_attention=config.model.fused_attention,
        erasing=config.data.augment.random_erasing,
    )  # fmt: skip

    def loss_fn(
        params: PyTree, state: TrainState, batch: Batch
    ) -> tuple[Float[Array, ""], tuple[PyTree, Metrics]]:
        rows = {name: batch[name] for name in ("image", "text", "text_ends")}
        rows["noise_ids"], keys, owner = noise_ids(batch, mesh), noise_keys(state), None
        if settings.mixed_weight:
            rows["mixed"], owner = mixing.mix_images(
                keys["random_erasing"], rows["noise_ids"], batch["image"],
                model.image_encoder.patch_size, settings.mixed_cell,
            )  # fmt: skip
        features = encode(params, keys, rows)
        output, updated = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            features.image,
            features.text,
            **_projected_parts(features.parts),
            train=True,
            mutable=["batch_stats"],
            method="project",
        )
        output, extra = _separated(output, features.parts)
        more = _losses_with_priors(output, features.parts, batch, settings, bank)
        if owner is not None:
            more["mixed"] = mixing.mixed_loss(output, extra["mixed"], features.parts["maps"], owner)
        if settings.distill_weight:
            taught = encode_teacher(jax.lax.stop_gradient(state.average["params"]), keys, rows)
            teacher = distillation.project_teacher(model, state.average, taught)
            more["distill"] = losses.distillation_loss(extra["crop"][:, 0], teacher)
        loss, metrics = contrastive_loss(output, settings, mesh, batch, more)
        metrics["text_overflow"] = (batch["text_overflow"] > 0).mean()
        return loss, (updated["batch_stats"], metrics | batch_means(features.groups))

    return loss_fn


def _losses_with_priors(
    output: TwoTowerOutput,
    parts: dict[str, Array],
    batch: Batch,
    settings: LossSettings,
    bank: Float[np.ndarray, "N D"] | None,
) -> dict[str, tuple[Float[Array, ""], Metrics]]:
    """Return by name the losses that compare images with what was prepared beside the pairs."""
    found = {}
    if settings.superpixel_weight:
        maps = parts["patch_groups"]
        superpixels = batch["superpixels"].reshape(maps.shape[:2])
        found["superpixel"] = losses.superpixel_loss(maps, superpixels)
    if bank is not None:
        nouns, scale = batch["bank_nouns"], output.logit_scale
        found["noun_bank"] = losses.noun_bank_loss(output.image, jnp.asarray(bank), nouns, scale)
    return found


def _read_bank(
    settings: LossSettings, path: str, output_dim: int
) -> Float[np.ndarray, "N D"] | None:
    """Return the embeddings of `config.data.noun_bank`, or None where no loss uses them.

    Raises:
      ValueError: they don't fit the joint space, or the file is something else.
      FileNotFoundError: there is no such file.
    """
    if not settings.noun_bank_weight:
        return None
    bank = read_noun_bank(path)
    if (width := bank.embeddings.shape[1]) != output_dim:
        raise ValueError(
            f"config.data.noun_bank: {path!r} with embeddings of {width} channels found, expected "
            f"config.model.projector.output_dim = {output_dim}"
        )
    return bank.embeddings


# Parts that go through the image projector like segments, in this order.
_AS_SEGMENTS = ("segments", "mixed", "crop")


def _projected_parts(parts: dict[str, Array]) -> dict[str, Any]:
    """Return the arguments of `project`: all that is projected like segments as one array."""
    joint = [parts[name] for name in _AS_SEGMENTS if name in parts]
    found = {"tokens": parts["tokens"]} if "tokens" in parts else {}
    return {**found, "segments": jnp.concatenate(joint, axis=1)} if joint else found


def _separated(
    output: TwoTowerOutput, parts: dict[str, Array]
) -> tuple[TwoTowerOutput, dict[str, Array]]:
    """Return the output with the segments alone, and what was projected with them by name."""
    names = [name for name in _AS_SEGMENTS if name in parts]
    if output.segments is None:
        return output, {}
    ends = np.cumsum([parts[name].shape[1] for name in names])[:-1].tolist()
    found = dict(zip(names, jnp.split(output.segments, ends, axis=1), strict=True))
    return output._replace(segments=found.pop("segments", None)), found


def _make_encoders(
    model: nn.Module,
    settings: LossSettings,
    mesh: Mesh,
    *,
    micro_batch_size: int | None,
    reduce_dtype: str,
    kernels: str,
    fused_attention: bool,
    erasing: float,
) -> tuple[Any, grad_cache.Encode, grad_cache.Encode]:
    """Return the model as the mesh computes it, and functions that encode a batch with it.

    The second is the teacher's (`distillation`).
    """
    in_float32 = reduce_dtype == "float32"
    model, has_kernels = on_mesh(
        model,
        mesh,
        kernels=kernels,
        fused_attention=fused_attention,
        within_shard_map=micro_batch_size is not None or in_float32,
    )
    if in_float32:
        # BatchNorm needs the whole batch at once, so that the projectors can't run device by
        # device. They are less than a 500th of the step's FLOPs.
        names = ("image_projector", "text_projector")
        model = model.clone(
            **{name: getattr(model, name).clone(dtype=jnp.float32) for name in names}
        )
    encode: grad_cache.Encode = functools.partial(
        encode_examples, model, erasing=erasing, parts=settings.parts
    )
    teacher: grad_cache.Encode = functools.partial(distillation.encode_teacher, model)
    if micro_batch_size is not None:
        encode, teacher = (
            grad_cache.in_micro_batches(each, micro_batch_size, mesh, with_kernels=has_kernels)
            for each in (encode, teacher)
        )
    elif in_float32:
        encode, teacher = (
            grad_cache.on_each_device(each, mesh, with_kernels=has_kernels)
            for each in (encode, teacher)
        )
    return model, encode, teacher


class Features(NamedTuple):
    """Outputs of the encoders: each row depends on its own example only.

    Attributes:
      image: embeddings of the images.
      text: features of their texts.
      groups: see `group_statistics`.
      parts: inputs of further losses: of the local alignment "segments" [B, G, C] and, unless
        prompts are its words, "tokens" [B, W, Q]; those of `mixing.encode_mixed`; "crop" of
        `distillation.encode_crops`; `patch_groups` of the images.
    """

    image: Float[Array, "B C"]
    text: Float[Array, "B N Q"]
    groups: dict[str, Float[Array, "B"]]
    parts: dict[str, Float[Array, "B _ _"]]


def encode_examples(
    model: nn.Module,
    params: PyTree,
    keys: PyTree,
    rows: Batch,
    erasing: float,
    parts: tuple[str, ...] = (),
) -> Features:
    """Normalise, erase and encode examples, each with its own noise.

    Args:
      model: a model with `TwoTower.encode`.
      params: parameters of the model.
      keys: the step's keys, from `noise_keys`.
      rows: "image", "text" and "text_ends" of a batch or of rows of one, "noise_ids", the
        examples' positions in the global batch, and maybe "mixed", images mixed with others.
      erasing: probability of random erasing.
      parts: names of the parts to keep, `LossSettings.parts`.
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
    text, tokens = jnp.split(text, [rows["text_ends"].shape[1]], axis=1)  # [B, N, Q], [B, W, Q]
    found = {"segments": features.segments, "tokens": tokens}
    if "mixed" in parts:
        found |= mixing.encode_mixed(model, params, keys, rows)
    if "crop" in parts:
        found["crop"] = distillation.encode_crops(model, params, keys, rows)
    if "patch_groups" in parts:
        found["patch_groups"] = patch_groups(features)
    kept = {name: found[name] for name in parts}
    return Features(features.embedding, text, group_statistics(features), kept)


def contrastive_loss(
    output: TwoTowerOutput,
    settings: LossSettings,
    mesh: Mesh,
    batch: Batch,
    more: Mapping[str, tuple[Float[Array, ""], Metrics]] = MappingProxyType({}),
) -> tuple[Float[Array, ""], Metrics]:
    """Return the weighted sum of the losses, and their metrics.

    The global loss is always computed, the multi-label loss if the examples have prompts, the local
    alignment if its weight isn't 0.

    Args:
      output: output of the model for the global batch; text 0 of an image is its caption, the
        others are its prompts.
      settings: weights and kinds of the losses.
      mesh: the device mesh.
      batch: the global batch: "text_ids" tells identical texts, "text_ends" the words present. The
        published losses need neither.
      more: further losses by name, each with its metrics.
    """
    ids = batch["text_ids"] if settings.identical_texts == "positives" else None
    num_losses = 1 if output.text.shape[1] == 1 else 2
    scales = [output.logit_scale, output.multi_label_logit_scale][:num_losses]
    biases = None
    if settings.kind == "sigmoid":
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
            settings.pairing,
            None if ids is None else by_loss(ids),
        )

    # Written out by device, not left to XLA: the losses choose how rows are exchanged (gathered
    # or passed round a ring) and compare them in blocks, so that no device holds all B x B logits.
    by_row, alike = PartitionSpec(parallel.BATCH_AXES), PartitionSpec()
    compare = jax.shard_map(on_device, mesh=mesh, in_specs=(by_row, alike, alike), out_specs=alike)
    rows = (output.image, output.text, ids)
    found = dict(zip(LOSSES, compare(rows, scales, biases), strict=False))
    if settings.local_weight:
        found["local"] = local_loss(output, settings, mesh, batch)
    if settings.pooled_weight:
        found["pooled"] = pooled_loss(output, settings, mesh, batch)
    found |= more
    total: Float[Array, ""] = jnp.float32(0)
    metrics: Metrics = {}
    for name, (value, its_metrics) in found.items():
        total += getattr(settings, f"{name}_weight") * value
        metrics |= {f"{name}/loss": value} | {f"{name}/{key}": m for key, m in its_metrics.items()}
    return total, metrics | {"loss": total}
