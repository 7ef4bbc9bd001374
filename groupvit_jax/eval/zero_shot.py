"""Zero-shot retrieval and classification."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from groupvit_jax import parallel
from groupvit_jax.data.pipeline.retrieval import eval_examples
from groupvit_jax.data.sources.labelled import LabelledSource
from groupvit_jax.data.sources.samples import Source
from groupvit_jax.eval import metrics
from groupvit_jax.eval.encoding import IMAGENET_PROMPTS, Encoder, ImageTower, Prompts
from groupvit_jax.eval.segmentation import cosines
from groupvit_jax.losses import l2_normalize
from groupvit_jax.typing import Array, Float, Int, Params

_RECALLS = (1, 5, 10)
_QUERIES_AT_ONCE = 1024
_rank_true = jax.jit(metrics.rank_of_true_class)


class Retrieval:
    """Image-to-text and text-to-image retrieval over all images and captions of a source.

    Metrics: `image_to_text_rK` (one of the image's own captions is among the best K) and
    `text_to_image_rK`, for K of 1, 5 and 10, and the number of images read.
    """

    def __init__(
        self,
        encoder: Encoder,
        source: Source,
        *,
        name: str = "retrieval",
        batch_size: int = 256,
        captions_per_image: int = 5,
        resize: int | None = None,
        crop: int | None = None,
    ) -> None:
        """Set model and data.

        Args:
          encoder: the towers.
          source: images with captions.
          name: prefix of the metrics.
          batch_size: global batch size, rounded up to a multiple of the devices.
          captions_per_image: limit of captions per image, as is usual with COCO.
          resize: shorter side of the images in pixels; 8/7 of the crop by default.
          crop: side of the embedded central square; the training size by default.
        """
        self.name = name
        self._encoder, self.source = encoder, source
        self._batch_size, self._captions = encoder.batch_size(batch_size), captions_per_image
        self._resize, self._crop = encoder.image_sizes(resize, crop)

    def __call__(self, variables: Params) -> dict[str, float]:
        """Return the recalls."""
        image, text, owner = self._embed(variables)
        if not len(image):
            raise ValueError(f"{self.name}: none of {len(self.source)} images can be read")
        identity = np.arange(len(image))
        results = {}
        for direction, ranks in (
            ("image_to_text", match_ranks(image, identity, text, owner)),
            ("text_to_image", match_ranks(text, owner, image, identity)),
        ):
            for k in _RECALLS:
                results[f"{direction}_r{k}"] = metrics.recall(ranks, k)
        return results | {"images": float(len(image))}

    def _embed(self, variables: Params):
        """Return embeddings of images [I, D] and texts [T, D], and each text's image index."""
        parts: list[tuple[np.ndarray, ...]] = []
        for batch in batches(
            self._encoder, self.source, self._batch_size, self._resize, self._crop
        ):
            tokens, written = self._tokenize(batch.pop("captions"))
            batch |= {"tokens": tokens, "written": written}
            arrays = parallel.to_global_batch(self._encoder.mesh, batch)
            parts.append(jax.device_get(self._embed_batch(variables, arrays)))
        image, text, present, written = (np.concatenate(p) for p in zip(*parts, strict=True))
        written = written[present]
        # [I, D], [T, D] and [T]: rows of `written` are images, its columns their captions.
        return image[present], text[present][written], np.nonzero(written)[0]

    def _embed_batch(self, variables: Params, arrays: Mapping[str, Array]):
        images = self._encoder.image_embeddings(variables, arrays["image"])
        texts = self._encoder.token_embeddings(variables, arrays["tokens"])
        return images, texts, *self._encoder.replicate((arrays["_mask"], arrays["written"]))

    def _tokenize(self, captions: Sequence[Sequence[str]]):
        """Return token ids [B, M, T] and a mask of the M places that hold a caption."""
        M, tokenizer = self._captions, self._encoder.tokenizer
        # Filled up with empty texts to M an image, so that all batches have one shape.
        flat = [text for each in captions for text in [*each[:M], *[""] * (M - len(each))]]
        written = np.array([[i < len(each) for i in range(M)] for each in captions])
        return tokenizer(flat).reshape(len(captions), M, -1), written


class Classification:
    """Zero-shot classification.

    Metrics: `top1` and `top5` accuracy, and the number of images read.

    Attributes:
      name: prefix of the metrics.
      source: images with labels.
      class_names: class names by label.
      prompts: templates whose embeddings are averaged; or by class, with "" for the others.
    """

    def __init__(
        self,
        encoder: Encoder,
        source: LabelledSource,
        class_names: Sequence[str],
        *,
        name: str = "classification",
        batch_size: int = 256,
        prompts: Prompts = IMAGENET_PROMPTS,
        resize: int | None = None,
        crop: int | None = None,
    ) -> None:
        """Set model and data.

        Args:
          encoder: the towers.
          source: images; captions are not used.
          class_names: class names by label.
          name: prefix of the metrics.
          batch_size: global batch size, rounded up to a multiple of the devices.
          prompts: templates with one `{}`, whose embeddings are averaged; or by class.
          resize: shorter side of the images in pixels; 8/7 of the crop by default.
          crop: side of the classified central square; the training size by default.
        """
        self.name = name
        self._encoder, self.source, self.class_names = encoder, source, tuple(class_names)
        self._batch_size, self.prompts = encoder.batch_size(batch_size), prompts
        self._resize, self._crop = encoder.image_sizes(resize, crop)

    def __call__(self, variables: Params) -> dict[str, float]:
        """Return the accuracies."""
        text = self._encoder.class_embeddings(variables, self.class_names, self.prompts)
        ranks = []
        for batch in batches(
            self._encoder, self.source, self._batch_size, self._resize, self._crop
        ):
            del batch["captions"]
            # Padding has indices beyond the set; any label will do for it.
            present = np.where(batch["_mask"], batch["index"], 0)
            batch["label"] = np.array([self.source.label(i) for i in present.tolist()], np.int32)
            arrays = parallel.to_global_batch(self._encoder.mesh, batch)
            images = self._encoder.image_embeddings(variables, arrays["image"])
            # Rows of all processes, as the embeddings are.
            label, present = jax.device_get(
                self._encoder.replicate((arrays["label"], arrays["_mask"]))
            )
            rank = _rank_true(_cosines(np.asarray(images), text), label)
            ranks.append(np.asarray(rank)[present])
        rank = np.concatenate(ranks)
        if not len(rank):
            raise ValueError(f"{self.name}: none of {len(self.source)} images can be read")
        return {
            "top1": metrics.recall(rank, 1),
            "top5": metrics.recall(rank, 5),
            "images": float(len(rank)),
        }


def batches(
    encoder: ImageTower, source: Source, batch_size: int, resize: int, crop: int
) -> Iterator[dict[str, Any]]:
    """Yield this process's rows of padded batches over a whole source."""
    yield from eval_examples(
        source,
        batch_size,
        resize=resize,
        crop=crop,
        host_index=jax.process_index(),
        host_count=jax.process_count(),
    )


def match_ranks(
    query: Float[np.ndarray, "Q D"],
    query_identity: Int[np.ndarray, " Q"],
    candidate: Float[np.ndarray, "N D"],
    candidate_identity: Int[np.ndarray, " N"],
) -> Int[np.ndarray, " R"]:
    """Return the rank of the first match (from 0) for each query that has one.

    Args:
      query: embeddings, not normalised.
      query_identity: index of the image that each query is or describes.
      candidate: embeddings, not normalised.
      candidate_identity: index of the image that each candidate is or describes.
    """
    # A query whose image has no candidate could only be a miss.
    answerable = np.isin(query_identity, candidate_identity)
    query, query_identity = query[answerable], query_identity[answerable]
    parts = [
        _first_match(
            query[i : i + _QUERIES_AT_ONCE],
            query_identity[i : i + _QUERIES_AT_ONCE],
            candidate,
            candidate_identity,
        )
        for i in range(0, len(query), _QUERIES_AT_ONCE)
    ]
    return np.concatenate([np.asarray(part) for part in parts])


@jax.jit
def _cosines(a: Float[Array, "Q D"], b: Float[Array, "N *names D"]) -> Float[Array, "Q N"]:
    return cosines(l2_normalize(a), l2_normalize(b))


@jax.jit
def _first_match(query, query_identity, candidate, candidate_identity):
    return metrics.first_match_rank(_cosines(query, candidate), query_identity, candidate_identity)
