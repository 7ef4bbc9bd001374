"""Zero-shot segmentation by the published protocol: groups take classes, pixels take groups.

Pure functions of arrays, jitted by their callers; scores are averaged over sliding windows, and
the evaluator accumulates one confusion matrix over a whole set.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from groupvit_jax import parallel
from groupvit_jax.data.device_ops import normalize
from groupvit_jax.eval import metrics
from groupvit_jax.eval.encoding import (
    SEGMENTATION_PROMPTS,
    Encoder,
    encode_images,
    project_groups,
)
from groupvit_jax.eval.masks import MaskedSource
from groupvit_jax.losses import clipped_scale, l2_normalize
from groupvit_jax.models.two_tower import TwoTower
from groupvit_jax.typing import Array, Float, Int, Params, UInt8


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a set is evaluated; the defaults are the published ones but for the background.

    Attributes:
      resize: longest and shortest side that the image is made to fit, keeping its ratio; None
        leaves images as they are.
      window: side of the sliding windows in pixels.
      stride: distance between windows in pixels.
      background_threshold: None where the classes have no background.
      num_kept: number of classes kept in each window.
      prompts: texts with one `{}` for a class's name, whose embeddings are averaged.
    """

    resize: Sequence[int] | None = (2048, 448)
    window: int = 448
    stride: int = 224
    background_threshold: float | None = None
    num_kept: int = 5
    prompts: tuple[str, ...] = SEGMENTATION_PROMPTS


def resize_bilinear(maps: Float[Array, "B h w C"], size: Sequence[int]) -> Float[Array, "B H W C"]:
    """Resizes bilinearly: half-pixel centres, not antialiased (PyTorch's default)."""
    shape = (maps.shape[0], *size, maps.shape[3])
    return jax.image.resize(maps, shape, "bilinear", antialias=False)


def pixel_groups(
    assignments: Sequence[Float[Array, "B _ _"]], size: Sequence[int], patch_size: int
) -> Int[Array, "B H W"]:
    """Returns the last grouping stage's group of every pixel.

    The soft assignments of all stages are multiplied, resized to the pixels, and each pixel takes
    its likeliest group.

    Args:
      assignments: for each grouping stage in order, [B, groups, segments].
      size: height and width of the images.
      patch_size: side of a patch; the encoder pads the images to multiples of it.
    """
    of_patch = assignments[0]
    for assignment in assignments[1:]:
        of_patch = jnp.einsum(
            "bhg,bgl->bhl", assignment, of_patch, precision=jax.lax.Precision.HIGHEST
        )
    (H, W), p = size, patch_size
    grid = (-(-H // p), -(-W // p))
    maps = jnp.moveaxis(of_patch, 1, 2).reshape(of_patch.shape[0], *grid, -1)
    maps = resize_bilinear(maps.astype(jnp.float32), (grid[0] * p, grid[1] * p))
    return maps[:, :H, :W].argmax(-1)


def group_scores(
    groups: Float[Array, "B G D"],
    image: Float[Array, "B D"],
    text: Float[Array, "N D"],
    logit_scale: Float[Array, ""],
    num_kept: int = 5,
) -> Float[Array, "B G N"]:
    """Returns how much each group is of each class: `softmax(kept affinity) * softmax(affinity)`.

    Only the classes that the whole image likes best are kept; the others score 0.

    Args:
      groups: embeddings of the segments, not normalised.
      image: embedding of the whole window, not normalised.
      text: normalised class embeddings.
      logit_scale: logarithm of the inverse temperature.
      num_kept: number of classes kept.
    """
    highest = jax.lax.Precision.HIGHEST
    affinity = jnp.matmul(l2_normalize(groups), text.T, precision=highest)
    affinity = affinity * clipped_scale(logit_scale)
    liking = jnp.matmul(l2_normalize(image), text.T, precision=highest)
    _, best = jax.lax.top_k(liking, min(num_kept, text.shape[0]))
    kept = jax.nn.one_hot(best, text.shape[0], dtype=bool).any(axis=1)
    masked = jnp.where(kept[:, None], affinity, -jnp.inf)
    return jax.nn.softmax(masked, axis=-1) * jax.nn.softmax(affinity, axis=-1)


def add_background(
    scores: Float[Array, "B H W N"], group_scores: Float[Array, "B G N"], threshold: float
) -> Float[Array, "B H W M"]:
    """Puts the background's score before the classes': 1 where no class scores enough, else 0.

    Enough is `threshold`, or the window's best score of any group where that is less.
    """
    enough = jnp.minimum(threshold, group_scores.max(axis=(1, 2)))
    background = scores.max(axis=-1) < enough[:, None, None]
    return jnp.concatenate([background[..., None].astype(scores.dtype), scores], axis=-1)


def window_scores(
    model: TwoTower,
    variables: Params,
    images: Float[Array, "B H W 3"],
    text: Float[Array, "N D"],
    protocol: Protocol,
) -> Float[Array, "B H W M"]:
    """Returns every pixel's score of every class; with a threshold, background comes first.

    Args:
      model: the two towers.
      variables: the model's parameters and statistics.
      images: a batch of windows, normalised.
      text: normalised class embeddings, without the background's.
      protocol: the knobs.
    """
    image, features = encode_images(model, variables, images)
    groups = project_groups(model, variables, features.segments)
    logit_scale = variables["params"]["logit_scale"]
    of_group = group_scores(groups, image, text, logit_scale, protocol.num_kept)
    patch_size = model.image_encoder.patch_size
    of_pixel = pixel_groups(features.assignments, images.shape[1:3], patch_size)
    scores = jax.vmap(lambda rows, index: rows[index])(of_group, of_pixel)
    if protocol.background_threshold is None:
        return scores
    return add_background(scores, of_group, protocol.background_threshold)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Returns where windows begin along an axis; the last one is flush with the border."""
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


def sliding_scores(
    model: TwoTower,
    variables: Params,
    images: Float[Array, "B H W 3"],
    text: Float[Array, "N D"],
    protocol: Protocol,
) -> Float[Array, "B H W M"]:
    """Averages `window_scores` over all windows, which go through the encoder as one batch.

    An image that is smaller than the window along an axis makes the window smaller.
    """
    H, W = images.shape[1:3]
    h, w = min(protocol.window, H), min(protocol.window, W)
    rows, columns = (window_starts(*lengths, protocol.stride) for lengths in ((H, h), (W, w)))
    corners = [(y, x) for y in rows for x in columns]
    crops = jnp.concatenate([images[:, y : y + h, x : x + w] for y, x in corners])
    scores = window_scores(model, variables, crops, text, protocol)
    total = jnp.zeros((images.shape[0], H, W, scores.shape[-1]), scores.dtype)
    count = np.zeros((H, W, 1), np.float32)
    for (y, x), part in zip(corners, jnp.split(scores, len(corners)), strict=True):
        total = total.at[:, y : y + h, x : x + w].add(part)
        count[y : y + h, x : x + w] += 1
    return total / count


def segment(
    model: TwoTower,
    variables: Params,
    images: UInt8[Array, "B H W 3"],
    text: Float[Array, "N D"],
    protocol: Protocol,
    size: Sequence[int],
) -> Int[Array, "B h w"]:
    """Returns the class of every pixel of the original images, of `size`; 0 is the background.

    Without a background, 0 is the first class.
    """
    scores = sliding_scores(model, variables, normalize(images), text, protocol)
    return resize_bilinear(scores, size).argmax(-1)


def resize_to_fit(
    image: UInt8[np.ndarray, "H W 3"], sides: Sequence[int]
) -> UInt8[np.ndarray, "h w 3"]:
    """Scales an image as far as its sides fit (longest, shortest), keeping its ratio; bilinear."""
    H, W = image.shape[:2]
    scale = min(max(sides) / max(H, W), min(sides) / min(H, W))
    size = (max(1, int(W * scale + 0.5)), max(1, int(H * scale + 0.5)))
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)


class Segmentation:
    """Segments every image of a set into named classes and compares with its mask.

    Metrics: `miou`, `pixel_accuracy`, and `iou/CLASS` of every class that occurs.
    """

    def __init__(
        self,
        encoder: Encoder,
        source: MaskedSource,
        class_names: Sequence[str],
        protocol: Protocol,
        *,
        name: str = "segmentation",
        batch_size: int = 32,
        background_name: str = "background",
    ) -> None:
        """Takes what to evaluate on.

        Args:
          encoder: the towers.
          source: images with masks, whose values index the classes (the background's is 0, if
            there is one).
          class_names: without the background's.
          protocol: the knobs.
          name: prefix of the metrics.
          batch_size: images of one size that are segmented at once; rounded up to what the
            devices divide.
          background_name: what the background is called in the results.
        """
        self.name = name
        self._encoder, self._source, self._protocol = encoder, source, protocol
        self._class_names = tuple(class_names)
        self._batch_size = encoder.batch_size(batch_size)
        background = [] if protocol.background_threshold is None else [background_name]
        self.all_names = (*background, *self._class_names)
        self._count = jax.jit(self._count_batch, out_shardings=parallel.replicated(encoder.mesh))

    def __call__(self, variables: Params) -> dict[str, float]:
        """Returns the scores of one pass over the set."""
        confusion = self.confusion(variables)
        iou = metrics.class_iou(confusion)
        named = zip(self.all_names, iou.tolist(), strict=True)
        return {
            "miou": metrics.mean_iou(confusion),
            "pixel_accuracy": metrics.pixel_accuracy(confusion),
            **{f"iou/{name}": value for name, value in named if not np.isnan(value)},
        }

    def confusion(self, variables: Params) -> Int[np.ndarray, "N N"]:
        """Returns the counts of pixels by true and predicted class over the whole set."""
        text = self._encoder.class_embeddings(variables, self._class_names, self._protocol.prompts)
        total = np.zeros((len(self.all_names),) * 2, np.int64)
        pending: list[Array] = []
        for batch in self._batches():
            arrays = parallel.to_global_batch(self._encoder.mesh, self._own_rows(batch))
            pending.append(self._count(variables, arrays, text))
            if len(pending) > 1:  # the host prepares a batch while the devices work on another
                total += np.asarray(pending.pop(0))
        return total + sum(np.asarray(counts, np.int64) for counts in pending)

    def _count_batch(self, variables: Params, batch: Mapping[str, Array], text: Array) -> Array:
        size = batch["mask"].shape[1:3]
        prediction = segment(
            self._encoder.model, variables, batch["image"], text, self._protocol, size
        )
        return metrics.confusion_matrix(
            batch["mask"], prediction, batch["present"], len(self.all_names)
        )

    def _batches(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields batches of equal sizes, the incomplete ones padded."""
        buckets: dict[tuple, list[tuple[np.ndarray, np.ndarray]]] = {}
        for index in range(len(self._source)):
            image, mask = self._source[index]
            if self._protocol.resize is not None:
                image = resize_to_fit(image, self._protocol.resize)
            bucket = buckets.setdefault((image.shape, mask.shape), [])
            bucket.append((image, mask))
            if len(bucket) == self._batch_size:
                yield _pad(bucket, self._batch_size)
                bucket.clear()
        for bucket in buckets.values():
            if bucket:
                yield _pad(bucket, self._batch_size)

    def _own_rows(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns this process's rows of a batch."""
        rows = self._batch_size // jax.process_count()
        start = rows * jax.process_index()
        return {name: array[start : start + rows] for name, array in batch.items()}


def _pad(pairs: Sequence[tuple[np.ndarray, np.ndarray]], size: int) -> dict[str, np.ndarray]:
    images, masks = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    missing = size - len(pairs)
    pad = functools.partial(np.pad, mode="edge")
    return {
        "image": pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))),
        "mask": pad(masks, ((0, missing), (0, 0), (0, 0))),
        "present": np.arange(size) < len(pairs),
    }
