"""The segmentation task: images and their masks, the segment head's loss at full resolution."""

from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from groupvit_jax import losses
from groupvit_jax.models import preprocess
from groupvit_jax.models.grouping import resize_maps
from groupvit_jax.models.segmentation import SegmentationModel
from groupvit_jax.train import grad_cache
from groupvit_jax.train.forward import (
    batch_means,
    group_statistics,
    noise_ids,
    noise_keys,
    on_mesh,
)
from groupvit_jax.train.state import TrainState
from groupvit_jax.train.step import LossFn, Metrics
from groupvit_jax.typing import Array, Batch, Float, PyTree


def make_segmentation_loss(
    model: SegmentationModel,
    mesh: Mesh,
    *,
    fused_attention: bool = False,
    kernels: str = "auto",
    reduce_dtype: str = "auto",
) -> LossFn:
    """Return the loss of images and their masks, `losses.segmentation_loss` at full resolution.

    Args:
      model: the image tower with its head.
      mesh: the device mesh.
      fused_attention: whether attention is one kernel.
      kernels: `config.model.kernels`.
      reduce_dtype: `config.parallel.reduce_dtype`.

    Returns:
      A function whose metrics are `loss`, `labelled_pixels` (the share that counts) and
      those of `group_statistics`.
    """
    in_float32 = reduce_dtype == "float32"
    model, has_kernels = on_mesh(
        model,
        mesh,
        kernels=kernels,
        fused_attention=fused_attention,
        within_shard_map=in_float32,
    )

    def encode_rows(params: PyTree, keys: PyTree, rows: PyTree) -> Any:
        return model.apply(
            {"params": params},
            preprocess.normalize(rows["image"]),
            noise_ids=rows["noise_ids"],
            rngs={name: keys[name] for name in ("drop_path", "gumbel")},
        )

    encode: Callable[[PyTree, PyTree, PyTree], Any] = encode_rows
    if in_float32:
        encode = grad_cache.on_each_device(encode_rows, mesh, with_kernels=has_kernels)

    def loss_fn(
        params: PyTree, state: TrainState, batch: Batch
    ) -> tuple[Float[Array, ""], tuple[PyTree, Metrics]]:
        rows = {"image": batch["image"], "noise_ids": noise_ids(batch, mesh)}
        output: Any = encode(params, noise_keys(state), rows)
        _, H, W, _ = batch["image"].shape
        maps = resize_maps(output.maps, (H, W), model.image_encoder.patch_size)
        loss, labelled = losses.segmentation_loss(maps, output.logits, batch["mask"])
        metrics = {"loss": loss, "labelled_pixels": labelled}
        metrics |= batch_means(group_statistics(output.features))
        return loss, (state.batch_stats, metrics)

    return loss_fn
