"""Probes of the frozen image embedding: linear probe and nearest neighbours.

As is usual for encoders, the embedding is the image tower's output before the projector. Both
probes are trained on one split and evaluated on another.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from groupvit_jax import parallel
from groupvit_jax.data.sources.labelled import LabelledSource
from groupvit_jax.eval import metrics
from groupvit_jax.eval.encoding import ImageTower
from groupvit_jax.eval.zero_shot import batches
from groupvit_jax.losses import l2_normalize
from groupvit_jax.typing import Array, Float, Int, Params

_HIGHEST = jax.lax.Precision.HIGHEST
_QUERIES_AT_ONCE = 256
ROWS_AT_ONCE = 8192  # memory for the logits of a linear probe
# CLIP's sweep of the regularisation (Radford et al. 2021, A.3), as powers of ten.
_STRENGTHS = tuple(map(float, range(-6, 7, 2)))
_FINEST = 1 / 8


class Embedded(NamedTuple):
    """Embeddings and classes of a set, on the host; unreadable images are excluded."""

    features: Float[np.ndarray, "N C"]
    labels: Int[np.ndarray, " N"]


class LinearModel(NamedTuple):
    """Weights of a softmax regression."""

    kernel: Float[Array, "C M"]
    bias: Float[Array, " M"]


class Rows(NamedTuple):
    """Examples in chunks whose rows are sharded over the devices; `weight` 0 marks padding."""

    features: Float[Array, "K R C"]
    labels: Int[Array, "K R"]
    weight: Float[Array, "K R"]


class Probe:
    """Base of both probes: reads and embeds both splits.

    Attributes:
      name: prefix of the metrics.
      source: the evaluation images.
    """

    def __init__(
        self,
        tower: ImageTower,
        train: LabelledSource,
        source: LabelledSource,
        num_classes: int,
        *,
        name: str = "probe",
        batch_size: int = 256,
        resize: int | None = None,
        crop: int | None = None,
    ) -> None:
        """Set the data and the embedding.

        Args:
          tower: the image tower.
          train: training images.
          source: evaluation images.
          num_classes: number of classes of both.
          name: prefix of the metrics.
          batch_size: global batch size of the embedding, rounded up to a multiple of the devices.
          resize: shorter side of the images in pixels; 8/7 of the crop by default.
          crop: side of the embedded central square; the training size by default.
        """
        self.name, self.source, self.num_classes = name, source, num_classes
        self._tower, self._train = tower, train
        self._batch_size = tower.batch_size(batch_size)
        self._resize, self._crop = tower.image_sizes(resize, crop)

    def __call__(self, variables: Params) -> dict[str, float]:
        """Return `top1`, `top5` and the numbers of images read.

        Raises:
          ValueError: no image of a split can be read.
        """
        train, val = (self.embed(variables, source) for source in (self._train, self.source))
        ranks = self.ranks(train, val)
        return {
            "top1": metrics.recall(ranks, 1),
            "top5": metrics.recall(ranks, 5),
            "images": float(len(val.labels)),
            "train_images": float(len(train.labels)),
        }

    def ranks(self, train: Embedded, val: Embedded) -> Int[np.ndarray, " N"]:
        """Return the rank of the true class (from 0) for each image of `val`."""
        raise NotImplementedError

    def embed(self, variables: Params, source: LabelledSource) -> Embedded:
        """Embed every image once, in source order, on every process.

        Raises:
          ValueError: no image can be read.
        """
        tower, found = self._tower, []
        for batch in batches(tower, source, self._batch_size, self._resize, self._crop):
            # Padding has indices beyond the set; any label will do for it.
            index = np.where(batch["_mask"], batch["index"], 0)
            labels = np.array([source.label(i) for i in index.tolist()], np.int32)
            host = {"image": batch["image"], "label": labels, "_mask": batch["_mask"]}
            arrays = parallel.to_global_batch(tower.mesh, host)
            features = tower.image_features(variables, arrays["image"])
            rest = tower.replicate((arrays["label"], arrays["_mask"]))
            features, labels, present = jax.device_get((features, *rest))
            found.append(Embedded(features[present], labels[present]))
        features, labels = (np.concatenate(parts) for parts in zip(*found, strict=True))
        if not len(labels):
            raise ValueError(f"{self.name}: none of {len(source)} images can be read")
        return Embedded(features, labels)


class NearestNeighbours(Probe):
    """Weighted votes of the k nearest training images (as DINO, arXiv 2104.14294).

    A neighbour votes for its class with weight `exp(cosine / temperature)`. A class without votes
    counts as not found.
    """

    def __init__(self, *args: Any, k: int = 20, temperature: float = 0.07, **options: Any) -> None:
        """Set the number of neighbours and the temperature; see `Probe` for the rest.

        Raises:
          ValueError: one of them is not positive.
        """
        super().__init__(*args, **options)
        if k < 1 or not temperature > 0:
            raise ValueError(f"k={k}, temperature={temperature}: expected both over 0")
        self._k, self._temperature = k, temperature

    def ranks(self, train: Embedded, val: Embedded) -> Int[np.ndarray, " N"]:
        """See `Probe.ranks`."""
        mesh = self._tower.mesh
        features, labels = (
            parallel.put(x, parallel.replicated(mesh)) for x in (train.features, train.labels)
        )
        rank = jax.jit(
            functools.partial(
                neighbour_ranks,
                num_classes=self.num_classes,
                k=min(self._k, len(train.labels)),
                temperature=self._temperature,
            ),
            out_shardings=parallel.replicated(mesh),
        )
        size, found = self._tower.batch_size(_QUERIES_AT_ONCE), []
        for start in range(0, len(val.labels), size):
            part = Embedded(*(x[start : start + size] for x in val))
            query = [parallel.put(_padded(x, size), parallel.batch_sharding(mesh)) for x in part]
            found.append(np.asarray(rank(*query, features, labels))[: len(part.labels)])
        return np.concatenate(found)


def neighbour_ranks(
    query: Float[Array, "Q C"],
    truth: Int[Array, " Q"],
    features: Float[Array, "N C"],
    labels: Int[Array, " N"],
    *,
    num_classes: int,
    k: int,
    temperature: float,
) -> Int[Array, " Q"]:
    """Return the rank of the true class by votes (from 0); ties rank by index.

    Args:
      query: embeddings to classify, not normalised.
      truth: classes of the queries.
      features: embeddings of the neighbours, not normalised.
      labels: classes of the neighbours.
      num_classes: number of classes, the rank of a class without votes.
      k: number of neighbours that vote.
      temperature: see `NearestNeighbours`.
    """
    # [Q, N]
    cosines = jnp.matmul(l2_normalize(query), l2_normalize(features).T, precision=_HIGHEST)
    nearest, index = jax.lax.top_k(cosines, k)  # [Q, k]
    of_class = jax.nn.one_hot(labels[index], num_classes)  # [Q, k, M]
    votes = jnp.einsum("qk,qkm->qm", jnp.exp(nearest / temperature), of_class, precision=_HIGHEST)
    own = jnp.take_along_axis(votes, truth[:, None], axis=1)[:, 0]
    return jnp.where(own > 0, metrics.rank_of_true_class(votes, truth), num_classes)


class LinearProbe(Probe):
    """Softmax regression on the embeddings with swept regularisation, as in CLIP's linear probe.

    The regularisation strength is chosen on a held-out tenth of the training images, drawn with a
    fixed seed: powers of 100 from 1e-6 to 1e6, then at half the distance around the best until
    there are 8 steps per factor of ten. The final regression uses all training images.

    Attributes:
      chosen_strength: the regularisation strength of the last evaluation.
    """

    def __init__(
        self,
        *args: Any,
        strengths: Sequence[float] = (),
        max_iterations: int = 1000,
        **options: Any,
    ) -> None:
        """Set the options of the regression; see `Probe` for the rest.

        Args:
          *args: see `Probe`.
          strengths: candidates that replace the sweep.
          max_iterations: limit of L-BFGS iterations.
          **options: see `Probe`.
        """
        super().__init__(*args, **options)
        self._strengths = strengths
        self._fit = jax.jit(
            functools.partial(fit, num_classes=self.num_classes, max_iterations=max_iterations),
            out_shardings=parallel.replicated(self._tower.mesh),
        )
        self._rank = jax.jit(row_ranks, out_shardings=parallel.replicated(self._tower.mesh))

    def __call__(self, variables: Params) -> dict[str, float]:
        """Return the metrics of `Probe` and the chosen `strength`."""
        return super().__call__(variables) | {"strength": self.chosen_strength}

    def ranks(self, train: Embedded, val: Embedded) -> Int[np.ndarray, " N"]:
        """See `Probe.ranks`."""
        mesh = self._tower.mesh
        held_out = np.zeros(len(train.labels), np.float32)
        order = np.random.default_rng(0).permutation(len(held_out))
        held_out[order[: max(1, len(order) // 10)]] = 1
        fitted = in_chunks(mesh, train, 1 - held_out)

        @functools.cache
        def score(strength: float) -> float:
            ranks = self._ranks(self._fit(fitted, strength), fitted, len(held_out))
            return float((ranks == 0) @ held_out)

        if len(self._strengths) == 1 or len(held_out) == 1:
            best = (self._strengths or (1.0,))[0]
        elif self._strengths:
            best = max(self._strengths, key=score)
        else:
            best = sweep(score)
        self.chosen_strength = float(best)
        model = self._fit(in_chunks(mesh, train), self.chosen_strength)
        return self._ranks(model, in_chunks(mesh, val), len(val.labels))

    def _ranks(self, model: LinearModel, rows: Rows, count: int) -> Int[np.ndarray, " N"]:
        return np.asarray(self._rank(model, rows)).reshape(-1)[:count]


def sweep(score: Any) -> float:
    """Return the strength with the best score; ties choose the strongest regularisation.

    Args:
      score: maps a strength to its score; called seven times, and twice per halving of the step.
    """

    def of_power(power: float) -> tuple[float, float]:
        # As a pair: of equal scores, `max` takes the larger power.
        return score(10.0**power), power

    best, step = max(map(of_power, _STRENGTHS)), 2.0
    while step > _FINEST:
        step /= 2
        beside = [p for p in (best[1] - step, best[1] + step) if abs(p) <= max(_STRENGTHS)]
        best = max(best, *map(of_power, beside))
    return 10.0 ** best[1]


def in_chunks(
    mesh: Mesh,
    examples: Embedded,
    weight: Float[np.ndarray, " N"] | None = None,
    *,
    rows_at_once: int = ROWS_AT_ONCE,
) -> Rows:
    """Place examples on the devices, padded with rows of weight 0.

    Args:
      mesh: the devices.
      examples: all examples, on every process.
      weight: weights of the examples; 1 by default.
      rows_at_once: most rows of a chunk.
    """
    count, shards = len(examples.labels), parallel.num_batch_shards(mesh)
    rows = -(-min(count, rows_at_once) // shards) * shards
    num_chunks = -(-count // rows)
    weight = np.ones(count, np.float32) if weight is None else weight
    # [K, R, ...]: one chunk after another, the rows of each over the devices.
    sharding = NamedSharding(mesh, PartitionSpec(None, parallel.BATCH_AXES))
    return Rows(
        *(
            parallel.put(
                _padded(x, num_chunks * rows).reshape(num_chunks, rows, *x.shape[1:]), sharding
            )
            for x in (*examples, weight)
        )
    )


def objective(
    model: LinearModel, rows: Rows, strength: Float[Array, ""] | float
) -> Float[Array, ""]:
    """Return the mean cross-entropy plus `strength / (2 n) |kernel|^2`, with n the sum of weights.

    This is 1/n of the objective of scikit-learn's LogisticRegression with C = 1 / strength.
    """
    count = rows.weight.sum()

    @jax.checkpoint  # the logits of all chunks would not fit in memory
    def add(total: Array, chunk: Rows) -> tuple[Array, None]:
        log_classes = jax.nn.log_softmax(_logits(model, chunk))
        own = jnp.take_along_axis(log_classes, chunk.labels[:, None], axis=1)[:, 0]
        return total - (chunk.weight * own).sum() / count, None

    total, _ = jax.lax.scan(add, jnp.float32(0), rows)
    return total + strength / (2 * count) * jnp.sum(model.kernel**2)


def fit(
    rows: Rows,
    strength: Float[Array, ""] | float,
    *,
    num_classes: int,
    max_iterations: int,
    tolerance: float = 1e-5,
) -> LinearModel:
    """Minimise `objective` by L-BFGS, starting at zero.

    Args:
      rows: examples.
      strength: regularisation strength.
      num_classes: number of classes.
      max_iterations: limit of iterations.
      tolerance: stops when no derivative exceeds it.
    """
    solver = optax.lbfgs()
    value_fn = functools.partial(objective, rows=rows, strength=strength)
    # The line search has both at its last point, and keeps them in the state.
    value_and_gradient = optax.value_and_grad_from_state(value_fn)
    # The objective is convex, so any start would do.
    start = LinearModel(jnp.zeros((rows.features.shape[-1], num_classes)), jnp.zeros(num_classes))

    def is_going_on(carry: tuple[LinearModel, Any, Array, Array]) -> Array:
        _, _, iteration, steepness = carry
        return (iteration < max_iterations) & (steepness > tolerance)

    def step(
        carry: tuple[LinearModel, Any, Array, Array],
    ) -> tuple[LinearModel, Any, Array, Array]:
        model, state, iteration, _ = carry
        value, gradient = value_and_gradient(model, state=state)
        updates, state = solver.update(
            gradient, state, model, value=value, grad=gradient, value_fn=value_fn
        )
        steepness = optax.tree.norm(gradient, ord=jnp.inf)
        return optax.apply_updates(model, updates), state, iteration + 1, steepness

    first = (start, solver.init(start), jnp.int32(0), jnp.float32(jnp.inf))
    return jax.lax.while_loop(is_going_on, step, first)[0]


def row_ranks(model: LinearModel, rows: Rows) -> Int[Array, "K R"]:
    """Return the rank of the true class (from 0) for each row."""

    def rank(chunk: Rows) -> Array:
        return metrics.rank_of_true_class(_logits(model, chunk), chunk.labels)

    return jax.lax.map(rank, rows)


def _logits(model: LinearModel, chunk: Rows) -> Array:
    return jnp.matmul(chunk.features, model.kernel, precision=_HIGHEST) + model.bias


def _padded(x: np.ndarray, size: int) -> np.ndarray:
    return np.pad(x, [(0, size - len(x))] + [(0, 0)] * (x.ndim - 1))
