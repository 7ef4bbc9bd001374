"""The segment head: class logits of every segment, learnt from masks."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from groupvit_jax.models.grouping import group_maps
from groupvit_jax.models.image_encoder import ImageEncoder
from groupvit_jax.models.layers import vit_init
from groupvit_jax.models.two_tower import execution_of
from groupvit_jax.typing import Array, Float, ImageFeatures, Int


class SegmentHead(nn.Module):
    """A linear layer over the last stage's segments; computes in float32."""

    num_classes: int

    @nn.compact
    def __call__(self, segments: Float[Array, "B G C"]) -> Float[Array, "B G N"]:
        """Returns the logits."""
        dense = nn.Dense(self.num_classes, kernel_init=vit_init, name="classes")
        return dense(segments.astype(jnp.float32))


class SegmentOutput(NamedTuple):
    """What the segmentation of images is made of, before it has the images' size.

    Attributes:
      logits: of the classes, for each segment of the last stage.
      maps: how much every patch is of every segment; sums to one over them.
      features: of the encoder.
    """

    logits: Float[Array, "B G N"]
    maps: Float[Array, "B h w G"]
    features: ImageFeatures


class SegmentationModel(nn.Module):
    """The image tower with a segment head; its tower has the names it has in `TwoTower`."""

    image_encoder: ImageEncoder
    segment_head: SegmentHead

    def __call__(
        self, images: Float[Array, "B H W 3"], *, noise_ids: Int[Array, "B"] | None = None
    ) -> SegmentOutput:
        """Encodes and classifies.

        Args:
          images: normalised with ImageNet's statistics; see `ImageEncoder`.
          noise_ids: see `ImageEncoder`; None in evaluation.
        """
        (H, W), p = images.shape[1:3], self.image_encoder.patch_size
        features = self.image_encoder(images, noise_ids=noise_ids)
        maps = group_maps(features.assignments, (-(-H // p), -(-W // p)))[-1]
        return SegmentOutput(self.segment_head(features.segments), maps, features)


def build_segmentation_model(model_config: ConfigDict, num_classes: int) -> SegmentationModel:
    """Builds the image tower of `config.model` with a head for so many classes.

    Raises:
      ValueError: naming the field, if the configuration contradicts itself.
    """
    if not 1 <= num_classes <= 255:
        raise ValueError(
            f"config.segmentation.class_names: {num_classes} names found, expected 1 to 255: those "
            "of the masks' values from 0 on, the background included"
        )
    if not model_config.image.num_output_groups:
        raise ValueError(
            "config.model.image.num_output_groups: () found, expected a stage that groups"
        )
    dtype = jnp.dtype(model_config.dtype)
    return SegmentationModel(
        ImageEncoder(**model_config.image, execution=execution_of(model_config), dtype=dtype),
        SegmentHead(num_classes),
    )
