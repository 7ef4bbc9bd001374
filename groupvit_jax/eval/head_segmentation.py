"""Segmentation by a trained segment head, with the windows and metrics of zero-shot evaluation.

The class probabilities of a pixel are the mixture that training maximises
(`losses.mixture_log_likelihood`), averaged over the windows that contain the pixel.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from groupvit_jax.data.sources.masks import MaskedSource
from groupvit_jax.eval.encoding import ImageTower, Prompts
from groupvit_jax.eval.inference import WindowEncoder, WindowOutput
from groupvit_jax.eval.protocol import Protocol, make_protocol
from groupvit_jax.eval.segmentation import normalized_inside
from groupvit_jax.eval.segmentation_evaluator import Segmentation
from groupvit_jax.models.grouping import group_maps
from groupvit_jax.models.segmentation import SegmentationModel
from groupvit_jax.typing import Array, Float, Int, Params, UInt8

# Settings that only apply to a comparison with texts.
_OF_TEXTS = ("num_kept", "background_threshold", "background_rule", "prompts")


def head_protocol(image_size: int, *, protocol: str = "groupvit", **knobs: Any) -> Protocol:
    """Return the protocol of a segment head: windows of the training size, overlapping by half.

    Args:
      image_size: side of the training crops, which usually come from larger images.
      protocol: must be the published one; the others change settings that a head doesn't have.
      **knobs: fields of `Protocol` that differ; None stands for the default.

    Raises:
      ValueError: a value is invalid, or the setting doesn't apply to a head.
      TypeError: an override is not a field of `Protocol`.
    """
    given = {key: value for key, value in knobs.items() if value is not None}
    without_meaning = {key: given[key] for key in _OF_TEXTS if key in given}
    if protocol != "groupvit":
        without_meaning["protocol"] = protocol
    for key, value in without_meaning.items():
        raise ValueError(
            f"{key}={value!r}: no meaning for a segment head, which compares with no texts and has "
            "learnt the background"
        )
    # A head is trained on images that the encoder pads.
    settings: dict[str, Any] = {"window": image_size, "partial_patches": "pad"} | given
    return make_protocol(protocol, **settings)


class HeadTower(ImageTower):
    """An image tower with a segment head.

    Attributes:
      class_names: classes of the head; a background class comes first.
    """

    model: SegmentationModel

    def __init__(self, model: SegmentationModel, class_names: Sequence[str], mesh: Mesh) -> None:
        """Wrap the parts of a run; compilation happens at the first use."""
        super().__init__(model, mesh)
        self.class_names = tuple(class_names)

    @property
    def has_background(self) -> bool:
        """Whether class 0 is the background."""
        return self.class_names[:1] == ("background",)

    def class_embeddings(
        self, variables: Params, names: Sequence[str], prompts: Prompts
    ) -> Float[np.ndarray, "N C"]:
        """Return the head's weights; trained classes need neither names nor prompts."""
        del names, prompts
        return np.asarray(
            # [C, N]; a row for each class, as of texts, is its transpose.
            self.replicate(variables["params"]["segment_head"]["classes"]["kernel"])
        ).T


class HeadWindowEncoder(WindowEncoder):
    """Encodes windows and classifies their segments with the head."""

    encoder: HeadTower
    mixture = True

    def __init__(
        self,
        encoder: HeadTower,
        protocol: Protocol,
        *,
        views: bool = False,
        windows_at_once: int | None = None,
    ) -> None:
        """See `WindowEncoder`; compilation happens at the first use."""
        super().__init__(encoder, protocol, views=views, windows_at_once=windows_at_once)

        def classify(
            variables: Params, windows: UInt8[Array, "B H W 3"], inside: Int[Array, "B 2"]
        ) -> Any:
            output: Any = encoder.model.apply(variables, normalized_inside(windows, inside))
            maps = group_maps(output.features.assignments, output.maps.shape[1:3])
            scores = jax.nn.softmax(output.logits)
            classes = jnp.arange(scores.shape[-1], dtype=jnp.int32)
            # Every class is kept in every window: there are no texts to choose by.
            maps = maps if views else maps[-1:]
            return maps, jnp.broadcast_to(classes, (len(windows), len(classes))), scores

        self._classify_all = jax.jit(classify, out_shardings=self.sharding)

    def _classified(
        self, variables: Params, text: Array, windows: Array, inside: Array
    ) -> WindowOutput:
        del text  # the head's weights are part of the variables
        return WindowOutput(*self._classify_all(variables, windows, inside))


class HeadSegmentation(Segmentation):
    """Segments every image of a set with the head; metrics as in `Segmentation`."""

    window_encoder: ClassVar[type[WindowEncoder]] = HeadWindowEncoder

    def __init__(
        self,
        encoder: HeadTower,
        source: MaskedSource,
        protocol: Protocol,
        *,
        name: str = "segmentation",
        windows_at_once: int | None = None,
    ) -> None:
        """See `Segmentation`; the masks must have the head's classes."""
        super().__init__(
            encoder,
            source,
            encoder.class_names,
            protocol,
            name=name,
            windows_at_once=windows_at_once,
        )
        self.has_background = encoder.has_background
