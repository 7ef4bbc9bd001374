"""Segmentation by a trained segment head, with the windows and the counts of zero-shot's.

A pixel's probability of a class is the mixture that training maximises
(`losses.mixture_log_likelihood`), averaged over the windows that hold the pixel.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from groupvit_jax.data.device_ops import normalize
from groupvit_jax.data.masks import MaskedSource
from groupvit_jax.eval.encoding import ImageTower
from groupvit_jax.eval.inference import WindowEncoder, WindowOutput
from groupvit_jax.eval.protocol import Protocol
from groupvit_jax.eval.segmentation_evaluator import Segmentation
from groupvit_jax.models.segment_head import SegmentationModel
from groupvit_jax.typing import Array, Float, Params, UInt8


class HeadTower(ImageTower):
    """An image tower with a segment head."""

    model: SegmentationModel

    def __init__(self, model: SegmentationModel, mesh: Mesh) -> None:
        """Takes the parts of a run; nothing is compiled before it is used."""
        super().__init__(model, mesh)

    def class_embeddings(
        self, variables: Params, names: Sequence[str], prompts: Sequence[str]
    ) -> Float[np.ndarray, "N C"]:
        """Returns the head's weights; a trained class needs neither name nor prompt."""
        del names, prompts
        return np.asarray(
            self.replicate(variables["params"]["segment_head"]["classes"]["kernel"])
        ).T


class HeadWindowEncoder(WindowEncoder):
    """Encodes windows and classifies their segments by the head."""

    mixture = True

    def __init__(
        self,
        encoder: HeadTower,
        protocol: Protocol,
        *,
        views: bool = False,
        windows_at_once: int | None = None,
    ) -> None:
        """Compiles nothing yet; see `WindowEncoder`."""
        super().__init__(encoder, protocol, views=views, windows_at_once=windows_at_once)

        def classify(variables: Params, windows: UInt8[Array, "B H W 3"]) -> Any:
            output: Any = encoder.model.apply(variables, normalize(windows))
            scores = jax.nn.softmax(output.logits)
            classes = jnp.arange(scores.shape[-1], dtype=jnp.int32)
            return output.maps, jnp.broadcast_to(classes, (len(windows), len(classes))), scores

        self._classify_all = jax.jit(classify, out_shardings=self.sharding)

    def _classified(self, variables: Params, text: Array, windows: Array) -> WindowOutput:
        del text  # the head's weights are among the variables
        maps, classes, scores = self._classify_all(variables, windows)
        return WindowOutput((maps,), classes, scores)


class HeadSegmentation(Segmentation):
    """Segments every image of a set by the head; metrics as `Segmentation` has them.

    The background, if there is one, is a class like the others: the first of the names.
    """

    window_encoder: ClassVar[type[WindowEncoder]] = HeadWindowEncoder

    def __init__(
        self,
        encoder: HeadTower,
        source: MaskedSource,
        class_names: Sequence[str],
        protocol: Protocol,
        *,
        name: str = "segment_head",
        windows_at_once: int | None = None,
    ) -> None:
        """Takes what to evaluate on; see `Segmentation`.

        Raises:
          ValueError: the head has another number of classes, or the protocol has a background.
        """
        num_classes = encoder.model.segment_head.num_classes
        if len(class_names) != num_classes:
            raise ValueError(
                f"{name}: {len(class_names)} classes found, but the head has {num_classes}"
            )
        if protocol.has_background:
            raise ValueError(
                f"{name}: background_threshold found, but the head learns the background"
            )
        super().__init__(
            encoder, source, class_names, protocol, name=name, windows_at_once=windows_at_once
        )
