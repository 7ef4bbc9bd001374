"""Signs of trouble in one run's metrics: collapse, divergence, a small batch, slow input.

Each sign is a rule on recorded metrics with its threshold; its remedies are those of
docs/troubleshooting.md.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from groupvit_jax.compare.curves import visible_range
from groupvit_jax.losses.pairwise import MAX_LOGIT_SCALE
from groupvit_jax.report import charts
from groupvit_jax.runs.reading import Run

# The last records, over which a state is averaged.
_RECENT = 5
_COLLAPSED_GROUPS, _COLLAPSED_SHARE, _ALIKE, _UNDECIDED = 1.5, 0.95, 0.95, 0.9
_SPIKE = 10.0  # times the median of the gradient's norm
_CHANCE = 2.0  # times the accuracy of a guess
_SMALL_BATCH = 1024
_FALLEN = 0.9  # of the best value
_OVERFLOW, _WAITING = 0.01, 0.1
# Charts by title: metrics, or beginnings of their names.
_CHARTS = {
    "loss": ("loss", "global/loss", "multi_label/loss", "local/loss"),
    "accuracy within the batch": ("global/image_to_text_accuracy", "global/text_to_image_accuracy"),
    "groups in use, of an image": ("groups_in_use/",),
    "share of the image in its largest group": ("largest_group/",),
    "entropy of the assignments, 1 when undecided": ("assignment_entropy/",),
    "mean cosine between the groups of an image": ("group_cosine",),
    "norm of the gradient": ("gradient_norm",),
    "temperature": ("global/temperature", "multi_label/temperature"),
    "learning rate": ("learning_rate",),
}


class Finding(NamedTuple):
    """A sign of trouble.

    Attributes:
      title: what is wrong.
      evidence: the metric, its value and the threshold.
      causes: what usually causes it, and what helps.
      section: of docs/troubleshooting.md.
    """

    title: str
    evidence: str
    causes: str
    section: str


def findings(run: Run) -> list[Finding]:
    """Return the signs of trouble in a run's metrics, [] without any."""
    return [finding for rule in _RULES for finding in rule(run)]


def curves(run: Run) -> list[Markup]:
    """Return the charts of the metrics that the run has recorded, evaluations first."""
    names = list(dict.fromkeys(name for record in run.records for name in record))
    scores = [f"{name}/miou" for name in _evaluators(run.config)]
    found = []
    for title, wanted in {"evaluations": tuple(scores), **_CHARTS}.items():
        shown = {
            name: [(float(step), value) for step, value in run.points(name)]
            for name in names
            if any(name == w or (w.endswith("/") and name.startswith(w)) for w in wanted)
        }
        values = [y for points in shown.values() for _, y in points if math.isfinite(y)]
        if values:
            low, high, is_cut = visible_range(values)
            cut = "; values beyond are cut off" if is_cut else ""
            found.append(charts.line_chart(title + cut, shown, y_range=(low, high)))
    return found


def _evaluators(config: Mapping[str, object]) -> list[str]:
    names = (field.split(".")[1] for field in config if field.startswith("evaluators."))
    return list(dict.fromkeys(names))


def _recent(run: Run, metric: str) -> float | None:
    """Return the mean of the last finite values, None without any."""
    values = [value for _, value in run.points(metric) if math.isfinite(value)][-_RECENT:]
    return float(np.mean(values)) if values else None


def _stages(run: Run, metric: str) -> Iterator[tuple[str, float]]:
    names = dict.fromkeys(name for r in run.records for name in r if name.startswith(f"{metric}/"))
    for name in names:
        if (value := _recent(run, name)) is not None:
            yield name, value


def _not_finite(run: Run) -> Iterator[Finding]:
    points = [(s, v) for name in ("loss", "gradient_norm") for s, v in run.points(name)]
    if bad := [step for step, value in points if not math.isfinite(value)]:
        evidence = f"loss or gradient_norm at step {min(bad)}"
    elif spikes := _spikes(run):
        step, norm, median = spikes[-1]
        over = f"over {_SPIKE:g} times its median of {median:.3g}"
        evidence = f"gradient_norm {norm:.3g} at step {step}, {over}"
    else:
        return
    yield Finding(
        "Training is about to diverge, or has",
        evidence,
        "A rate too high for the batch, a warm-up too short, or the multi-label loss with few "
        "different nouns. Go back with --restore_step and a lower rate or clip_norm.",
        "nan-after-thousands-of-steps",
    )


def _spikes(run: Run) -> list[tuple[int, float, float]]:
    """Return step, value and median of gradient norms far above the median, in the last tenth."""
    points = [(s, v) for s, v in run.points("gradient_norm") if math.isfinite(v)]
    if len(points) < 2 * _RECENT:
        return []
    median = float(np.median([value for _, value in points]))
    last = [point for point in points if point[0] > 0.9 * run.last_step]
    return [(step, value, median) for step, value in last if value > _SPIKE * median]


def _collapse(run: Run) -> Iterator[Finding]:
    used = [(n, v) for n, v in _stages(run, "groups_in_use") if v < _COLLAPSED_GROUPS]
    large = [(n, v) for n, v in _stages(run, "largest_group") if v > _COLLAPSED_SHARE]
    alike = _recent(run, "group_cosine")
    evidence = [f"{name} {value:.3g} (below {_COLLAPSED_GROUPS:g})" for name, value in used]
    evidence += [f"{name} {value:.3g} (over {_COLLAPSED_SHARE:g})" for name, value in large]
    if alike is not None and alike > _ALIKE:
        evidence.append(f"group_cosine {alike:.3g} (over {_ALIKE:g})")
    if evidence:
        yield Finding(
            "The grouping has collapsed",
            ", ".join(evidence),
            "Captions that don't tell parts of an image apart (a narrow domain, one noun each), "
            "no noise in the assignment, or weights too small for a narrow model (init_std). The "
            "local loss asks for a group for each noun.",
            "all-patches-go-to-one-group",
        )


def _undecided(run: Run) -> Iterator[Finding]:
    for name, value in _stages(run, "assignment_entropy"):
        if value > _UNDECIDED:
            yield Finding(
                "Assignments are undecided",
                f"{name} {value:.3g} (over {_UNDECIDED:g}; 1 is uniform)",
                "The Gumbel noise decides in place of the logits: early in a run that is usual. "
                "Later, a lower model.image.temperature or a larger init_std helps.",
                "all-patches-go-to-one-group",
            )


def _temperature(run: Run) -> Iterator[Finding]:
    bound = 1 / MAX_LOGIT_SCALE
    for name in ("global", "multi_label"):
        value = _recent(run, f"{name}/temperature")
        if value is not None and value <= 1.001 * bound:
            yield Finding(
                "A temperature is at its bound",
                f"{name}/temperature {value:.4g}, the least is {bound:g}",
                "Usual late in long runs. Early, the batch is too small or pairs repeat: the loss "
                "falls by scaling alone, and gradients grow with the scale.",
                "small-batches-and-few-gpus",
            )


def _chance(run: Run) -> Iterator[Finding]:
    batch = run.config.get("train.batch_size")
    value = _recent(run, "global/image_to_text_accuracy")
    if isinstance(batch, int) and value is not None and value < _CHANCE / batch:
        yield Finding(
            "Images and captions are not told apart",
            f"global/image_to_text_accuracy {value:.3g}, a guess has {1 / batch:.3g}",
            "Images and captions that don't belong together (look at some pairs), a rate far too "
            "high or too low, or a run that has only begun.",
            "the-loss-does-not-fall",
        )


def _small_batch(run: Run) -> Iterator[Finding]:
    batch = run.config.get("train.batch_size")
    if isinstance(batch, int) and batch < _SMALL_BATCH:
        yield Finding(
            "The batch is small",
            f"train.batch_size {batch}, the published one is 4096",
            "Contrastive losses need many negatives. train.micro_batch_size computes a large batch "
            "on few devices; accumulating gradients does not replace it.",
            "small-batches-and-few-gpus",
        )


def _overfitting(run: Run) -> Iterator[Finding]:
    for name in _evaluators(run.config):
        points = [(s, v) for s, v in run.points(f"{name}/miou") if math.isfinite(v)]
        if len(points) < 3:
            continue
        step, best = max(points, key=lambda point: point[1])
        if points[-1][1] < _FALLEN * best:
            yield Finding(
                "An evaluation has fallen since its best",
                f"{name}/miou {points[-1][1]:.3g} now, {best:.3g} at step {step}",
                "Too many epochs of too few pairs, or a rate that stays too high. "
                "checkpoint.best_metric keeps the best step; optimizer.ema_decay smooths the last.",
                "small-data",
            )


def _input(run: Run) -> Iterator[Finding]:
    wait = _recent(run, "input_wait_seconds_per_step")
    whole = _recent(run, "seconds_per_step")
    if wait is not None and whole and wait / whole > _WAITING:
        yield Finding(
            "The devices wait for data",
            f"{wait / whole:.0%} of the time of a step",
            "Prepared shards, more workers (data.num_workers) or more cores: docs/input.md.",
            "small-batches-and-few-gpus",
        )
    overflow = _recent(run, "text_overflow")
    if overflow is not None and overflow > _OVERFLOW:
        yield Finding(
            "Prompts are lost",
            f"text_overflow {overflow:.3g} (over {_OVERFLOW:g})",
            "Texts don't fit into their row: a larger data.packed_length, docs/text.md.",
            "the-loss-does-not-fall",
        )


_RULES: tuple[Callable[[Run], Iterator[Finding]], ...] = (
    _not_finite,
    _collapse,
    _undecided,
    _temperature,
    _chance,
    _overfitting,
    _small_batch,
    _input,
)
