"""The segment head: class logits of every segment, trained on masks."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from groupvit_jax.models.grouping import group_maps
from groupvit_jax.models.image_encoder import ImageEncoder
from groupvit_jax.models.layers import vit_init
from groupvit_jax.models.two_tower import TwoTower
from groupvit_jax.typing import Array, Float, ImageFeatures, Int


class SegmentHead(nn.Module):
    """Linear classifier of the last stage's segments, in float32."""

    num_classes: int

    @nn.compact
    def __call__(self, segments: Float[Array, "B G C"]) -> Float[Array, "B G N"]:
        """Return the logits."""
        dense = nn.Dense(self.num_classes, kernel_init=vit_init, name="classes")
        return dense(segments.astype(jnp.float32))


class SegmentOutput(NamedTuple):
    """Segments' classes and the patches' segments, from which masks are computed.

    Attributes:
      logits: class logits of each segment of the last stage.
      maps: share of each segment in each patch; sums to one over the segments.
      features: of the encoder.
    """

    logits: Float[Array, "B G N"]
    maps: Float[Array, "B h w G"]
    features: ImageFeatures


class SegmentationModel(nn.Module):
    """Image tower with a segment head; parameters of the tower are named as in `TwoTower`."""

    image_encoder: ImageEncoder
    segment_head: SegmentHead

    def __call__(
        self, images: Float[Array, "B H W 3"], *, noise_ids: Int[Array, "B"] | None = None
    ) -> SegmentOutput:
        """Encode and classify.

        Args:
          images: normalised with ImageNet's statistics; see `ImageEncoder`.
          noise_ids: see `ImageEncoder`; None in evaluation.
        """
        (H, W), p = images.shape[1:3], self.image_encoder.patch_size
        features = self.image_encoder(images, noise_ids=noise_ids)
        # Rounded up, as the patch embedding pads.
        maps = group_maps(features.assignments, (-(-H // p), -(-W // p)))[-1]
        return SegmentOutput(self.segment_head(features.segments), maps, features)


def with_segment_head(model: TwoTower, num_classes: int) -> SegmentationModel:
    """Return the model's image tower with a segment head for `num_classes` classes.

    Raises:
      ValueError: there are too few or too many classes, or the tower never groups.
    """
    if not 1 <= num_classes <= 255:
        raise ValueError(
            f"config.segmentation.class_names: {num_classes} names found, expected 1 to 255, one "
            "for each mask value from 0, the background included"
        )
    if not model.image_encoder.num_output_groups:
        raise ValueError(
            "config.model.image.num_output_groups: () found, expected a stage that groups"
        )
    return SegmentationModel(model.image_encoder, SegmentHead(num_classes))
