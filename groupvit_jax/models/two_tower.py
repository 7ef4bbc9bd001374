"""Both towers, their projectors into the joint space, and the temperatures of the losses."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype
from ml_collections import ConfigDict

from groupvit_jax.models import image_encoder
from groupvit_jax.models.bert_encoder import BertEncoder
from groupvit_jax.models.blocks import REMAT, Execution
from groupvit_jax.models.image_encoder import ImageEncoder
from groupvit_jax.models.layers import BatchNorm, fan_in_uniform, uniform_bias
from groupvit_jax.models.siglip_text_encoder import SiglipTextEncoder
from groupvit_jax.models.text_encoder import TextEncoder
from groupvit_jax.typing import Array, Float, ImageFeatures, Int, TwoTowerOutput

# Types of the computation. Parameters, statistics, softmax and losses are always float32.
DTYPES = ("bfloat16", "float32")
TextTower = TextEncoder | BertEncoder | SiglipTextEncoder
TEXT_TOWERS: dict[str, type[TextTower]] = {
    "clip": TextEncoder,
    "bert": BertEncoder,
    "siglip": SiglipTextEncoder,
}


class Projector(nn.Module):
    """Linear layer, BatchNorm over the global batch, ReLU, linear layer; returns float32."""

    hidden_dim: int = 4096
    out_dim: int = 256
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B C"],
        *,
        train: bool,
        statistics_of: Float[Array, "S C"] | None = None,
    ) -> Float[Array, "B D"]:
        """Project features into the joint space, not normalised.

        Args:
          x: the features.
          train: whether BatchNorm's statistics are those of the batch.
          statistics_of: features whose statistics are used instead of those of `x`.
        """

        def dense(dim: int, name: str, fan_in: int) -> nn.Dense:
            bias = uniform_bias(fan_in)
            return nn.Dense(
                dim, kernel_init=fan_in_uniform, bias_init=bias, dtype=self.dtype, name=name
            )

        hidden = dense(self.hidden_dim, "linear_hidden", x.shape[-1])
        # BatchNorm follows the linear layer: its statistics are those of that layer's output.
        batch = None if statistics_of is None else hidden(statistics_of)
        x = nn.relu(BatchNorm(name="norm")(hidden(x), train=train, statistics_of=batch))
        return dense(self.out_dim, "linear_out", self.hidden_dim)(x).astype(jnp.float32)


class TwoTower(nn.Module):
    """GroupViT with its text tower.

    Attributes:
      image_encoder: encodes images as segments.
      text_encoder: encodes texts as features.
      image_projector: projects image embeddings, and single segments.
      text_projector: projects captions and prompts.
      initial_temperature: of both losses.
      share_logit_scale: whether both losses share one temperature and one bias.
      initial_logit_bias: initial bias of the sigmoid losses' logits; None for no bias.
    """

    image_encoder: ImageEncoder
    text_encoder: TextTower
    image_projector: Projector
    text_projector: Projector
    initial_temperature: float = 0.07
    share_logit_scale: bool = False
    initial_logit_bias: float | None = None

    def setup(self) -> None:
        """Create the parameters of the losses: log inverse temperatures and biases."""
        # As a logarithm, so that no update can make the temperature negative.
        init = nn.initializers.constant(np.log(1 / self.initial_temperature))
        self.logit_scale = self.param("logit_scale", init, ())
        if not self.share_logit_scale:
            self.multi_label_logit_scale = self.param("multi_label_logit_scale", init, ())
        if self.initial_logit_bias is not None:
            init = nn.initializers.constant(self.initial_logit_bias)
            self.logit_bias = self.param("logit_bias", init, ())
            if not self.share_logit_scale:
                self.multi_label_logit_bias = self.param("multi_label_logit_bias", init, ())

    def __call__(
        self,
        images: Float[Array, "B H W 3"],
        text: Int[Array, "B L"],
        text_ends: Int[Array, "B N"],
        *,
        train: bool = False,
    ) -> TwoTowerOutput:
        """Embed images and their texts.

        Args:
          images: normalised with ImageNet's statistics.
          text: token ids of each image's texts, packed into one row (`data.text.packing`).
          text_ends: positions at which the row's caption and then its prompts end; a prompt that
            stands in for the caption has the caption's position.
          train: whether BatchNorm's statistics are those of the batch, and the running ones are
            updated (mutable "batch_stats"); needs the rngs "gumbel" and "drop_path".
        """
        noise_ids = jnp.arange(len(images)) if train else None
        features, text_features = self.encode(images, text, text_ends, noise_ids=noise_ids)
        output = self.project(features.embedding, text_features, train=train)
        return output._replace(image_features=features)

    def encode(
        self,
        images: Float[Array, "B H W 3"],
        text: Int[Array, "B L"],
        text_ends: Int[Array, "B N"],
        *,
        noise_ids: Int[Array, "B"] | None = None,
        caption_tokens: bool = False,
    ) -> tuple[ImageFeatures, Float[Array, "B M C"]]:
        """Return the features of both encoders; an example's do not depend on its batch.

        Args:
          images: see `__call__`.
          text: see `__call__`.
          text_ends: see `__call__`.
          noise_ids: see `ImageEncoder`.
          caption_tokens: whether the features of the caption's tokens follow those of the texts:
            of all positions that can hold one, without the first and the last token.
        """
        # The caption is the row's first text.
        longest = min(self.text_encoder.context_length, text.shape[1])
        places = jnp.arange(1, longest - 1) if caption_tokens else None
        features = self.image_encoder(images, noise_ids=noise_ids)
        return features, self.text_encoder(text, text_ends, places)

    def project(
        self,
        image: Float[Array, "B C"],
        text: Float[Array, "B N Q"],
        segments: Float[Array, "B G C"] | None = None,
        tokens: Float[Array, "B W Q"] | None = None,
        *,
        train: bool,
    ) -> TwoTowerOutput:
        """Return the joint embeddings of `encode`'s features, without the image features.

        Args:
          image: embeddings of the image encoder.
          text: features of the text encoder.
          segments: of the images. In training they are normalised with the statistics of the image
            embeddings, as in evaluation.
          tokens: features of the captions' tokens, normalised with the texts' statistics.
          train: see `__call__`; BatchNorm needs the whole batch at once.
        """
        B, N, _ = text.shape
        # Captions and prompts are one batch for BatchNorm, as in the published model, where a
        # caption that stands in for prompts counts once for each of them.
        texts = text.reshape(B * N, -1)  # [B * N, Q]
        text_embedding = self.text_projector(texts, train=train)

        def project_parts(projector: Projector, parts: Array | None, wholes: Array) -> Any:
            if parts is None:
                return None
            flat = parts.reshape(-1, parts.shape[-1])  # [B, G, C] -> [B * G, C]
            return projector(flat, train=train, statistics_of=wholes).reshape(*parts.shape[:2], -1)

        own = "" if self.share_logit_scale else "multi_label_"
        biased = self.initial_logit_bias is not None
        return TwoTowerOutput(
            image=self.image_projector(image, train=train),
            text=text_embedding.reshape(B, N, -1),
            logit_scale=self.logit_scale,
            multi_label_logit_scale=getattr(self, f"{own}logit_scale"),
            segments=project_parts(self.image_projector, segments, image),
            tokens=project_parts(self.text_projector, tokens, texts),
            logit_bias=self.logit_bias if biased else None,
            multi_label_logit_bias=getattr(self, f"{own}logit_bias") if biased else None,
        )

    def encode_image(
        self, images: Float[Array, "B H W 3"]
    ) -> tuple[Float[Array, "B D"], ImageFeatures]:
        """Return joint embeddings (not normalised) and features of normalised images."""
        features = self.image_encoder(images)
        return self.image_projector(features.embedding, train=False), features

    def encode_text(self, tokens: Int[Array, "B T"]) -> Float[Array, "B D"]:
        """Return the joint embeddings (not normalised) of texts, one a row."""
        return self.text_projector(self.text_encoder(tokens)[:, 0], train=False)

    def project_groups(self, segments: Float[Array, "B G C"]) -> Float[Array, "B G D"]:
        """Return the joint embeddings (not normalised) of segments, projected like images."""
        B, G, C = segments.shape
        return self.image_projector(segments.reshape(B * G, C), train=False).reshape(B, G, -1)


def build_model(config: ConfigDict) -> TwoTower:
    """Build the model that `config.model` describes.

    Raises:
      ValueError: naming the field, if the configuration contradicts itself.
    """
    if errors := find_contradictions(config.to_dict()):
        raise ValueError("; ".join(errors))
    dtype = jnp.dtype(config.dtype)
    # Configurations recorded before a field existed lack it; hence `get`, here and below.
    execution = Execution(config.get("scan_layers", False), config.get("remat", "none"))
    projector = {"hidden_dim": config.projector.hidden_dim, "out_dim": config.projector.output_dim}
    return TwoTower(
        image_encoder=ImageEncoder(**config.image, execution=execution, dtype=dtype),
        text_encoder=_build_text_encoder(config.text.to_dict(), execution, dtype),
        image_projector=Projector(**projector, dtype=dtype),
        text_projector=Projector(**projector, dtype=dtype),
        initial_temperature=config.initial_temperature,
        share_logit_scale=config.share_logit_scale,
        initial_logit_bias=config.get("initial_logit_bias"),
    )


def find_contradictions(model: Mapping[str, Any]) -> list[str]:
    """Return a line for every contradiction between the fields of `config.model`."""
    errors = image_encoder.find_contradictions(model["image"])
    text = model["text"]
    for name, value, choices in (
        ("remat", model.get("remat", "none"), REMAT),
        ("text.kind", text.get("kind", "clip"), TEXT_TOWERS),
    ):
        if value not in choices:
            expected = " or ".join(map(repr, choices))
            errors.append(f"config.model.{name}: {value!r} found, expected {expected}")
    if text["width"] % text["num_heads"]:
        errors.append(
            f"config.model.text.num_heads: {text['num_heads']} found, expected a divisor of the "
            f"width {text['width']}"
        )
    return errors


def text_tower(encoder: TextTower) -> str:
    """Return the encoder's name in `TEXT_TOWERS`, the value of `config.model.text.kind`."""
    return next(kind for kind, tower in TEXT_TOWERS.items() if type(encoder) is tower)


def _build_text_encoder(fields: dict[str, Any], execution: Execution, dtype: Dtype) -> TextTower:
    kind = fields.pop("kind", "clip")
    return TEXT_TOWERS[kind](**fields, execution=execution, dtype=dtype)
