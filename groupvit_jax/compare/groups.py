"""Groups of runs with equal settings, differing only in the seed."""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from groupvit_jax.compare.metric import Format, Metric, make_format
from groupvit_jax.compare.settings import (
    ABSENT,
    SEED,
    differing_fields,
    in_order,
    short_texts,
    show,
)
from groupvit_jax.compare.statistics import (
    Difference,
    Effect,
    Values,
    holm,
    main_effects,
    mean_and_std,
    welch,
)
from groupvit_jax.runs.goodput import describe
from groupvit_jax.runs.reading import FINISHED, Run, shortest_ends

_MAX_TIMED = 8  # runs whose wall time is told


class Score(NamedTuple):
    """A run and its values of the metric.

    Attributes:
      run: the run.
      settings: its values of the settings that differ between runs, as text.
      value: the value to compare by, the last or the best; NaN without any.
      last: the last value, at `last_step`.
      last_step: 0 without a value.
      best: the best value, at `best_step`.
      best_step: 0 without a value.
    """

    run: Run
    settings: tuple[str, ...]
    value: float
    last: float
    last_step: int
    best: float
    best_step: int

    @property
    def seed(self) -> str:
        """The seed, as text."""
        return str(self.run.config.get(SEED, ABSENT))


class Group(NamedTuple):
    """Finished runs with the same settings.

    Attributes:
      label: the settings as NAME=VALUE; only the differences from the baseline, if there is one.
      settings: their values.
      scores: scores of the runs, by seed.
      values: one value for each seed; the mean of several runs with one seed.
      mean: mean over the seeds.
      std: standard deviation over the seeds; NaN for one seed.
      behind: the first group's mean minus this one's, with its test; from the third group on p is
        corrected for the number of groups (Holm).
    """

    label: str
    settings: tuple[str, ...]
    scores: tuple[Score, ...]
    values: Values
    mean: float
    std: float
    behind: Difference


class Comparison(NamedTuple):
    """Runs compared by a metric.

    Attributes:
      metric: the metric to compare by.
      by: "last" or "best" value.
      format: format of the values.
      fields: dotted paths of the settings that differ.
      names: the shortest unambiguous ends of `fields`.
      groups: groups of the finished runs, the best first.
      others: unfinished runs, and runs without a value.
      effects: main effect of each setting by name, the largest first; empty unless every
        combination of values is present.
      notes: caveats about the figures.
    """

    metric: Metric
    by: str
    format: Format
    fields: tuple[str, ...]
    names: tuple[str, ...]
    groups: tuple[Group, ...]
    others: tuple[Score, ...]
    effects: Mapping[str, Effect]
    notes: tuple[str, ...]


def compare(runs: Sequence[Run], metric: Metric, by: str = "last") -> Comparison:
    """Group the runs and rank the groups.

    Args:
      runs: all runs.
      metric: the metric to compare by.
      by: "last" or "best" value of a run.
    """
    whole = [run.config for run in runs if run.is_configured]
    planned = [run.config for run in runs if not run.is_configured]
    fields = differing_fields(whole, planned)
    names = shortest_ends(fields, ".")
    texts = {
        field: short_texts([c[field] for c in whole + planned if field in c]) for field in fields
    }
    scores = [_score(run, metric, texts, by) for run in runs]
    kept = [s for s in scores if s.run.state == FINISHED and math.isfinite(s.value)]
    groups = _rank(kept, names, metric.sign)
    others = [score for score in scores if score not in kept]
    return Comparison(
        metric,
        by,
        make_format(metric, [score.value for score in kept] or [score.last for score in others]),
        tuple(fields),
        tuple(names),
        tuple(groups),
        tuple(sorted(others, key=lambda score: (score.run.state, score.run.name))),
        _effects(groups, names),
        (*_notes(groups, others, names, len(runs)), *_goodput(runs)),
    )


def _score(run: Run, metric: Metric, texts: Mapping[str, Mapping[str, str]], by: str) -> Score:
    settings = tuple(
        short[show(run.config[field])] if field in run.config else ABSENT
        for field, short in texts.items()
    )
    points = run.points(metric.name)
    if not points:
        return Score(run, settings, math.nan, math.nan, 0, math.nan, 0)
    last_step, last = points[-1]
    finite = [point for point in points if math.isfinite(point[1])]
    best_step, best = max(finite, key=lambda at: metric.sign * at[1], default=(0, math.nan))
    value = last if by == "last" else best
    return Score(run, settings, value, last, last_step, best, best_step)


def _rank(scores: Sequence[Score], names: Sequence[str], sign: int) -> list[Group]:
    by_settings: dict[tuple[str, ...], list[Score]] = {}
    for score in scores:
        by_settings.setdefault(score.settings, []).append(score)
    baseline = _baseline(list(by_settings))
    groups = [_group(settings, found, names, baseline) for settings, found in by_settings.items()]
    groups.sort(key=lambda group: (-sign * group.mean, group.label))
    behind = [welch(groups[0].values, group.values) for group in groups[1:]]
    # Among many samples of one distribution the best two are close together, so the test of the
    # second is conservative without a correction. The best and the worst are far apart by chance.
    corrected = [d.p for d in behind[:1]] + holm([difference.p for difference in behind[1:]])
    return groups[:1] + [
        group._replace(behind=difference._replace(p=p))
        for group, difference, p in zip(groups[1:], behind, corrected, strict=True)
    ]


def _baseline(settings: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the settings with the majority value of every field, or () without such a group."""
    usual = tuple(
        collections.Counter(values).most_common(1)[0] for values in zip(*settings, strict=True)
    )
    values = tuple(value for value, _ in usual)
    several = len(usual) > 1 and values in settings
    return values if several and all(2 * n > len(settings) for _, n in usual) else ()


def _group(
    settings: tuple[str, ...],
    scores: Sequence[Score],
    names: Sequence[str],
    baseline: tuple[str, ...],
) -> Group:
    of_baseline = baseline or (None,) * len(names)
    label = ", ".join(
        f"{name}={value}"
        for name, value, usual in zip(names, settings, of_baseline, strict=True)
        if value != usual
    ) or ("baseline" if baseline else "all settings the same")
    by_seed: dict[str, list[float]] = {}
    for score in scores:
        by_seed.setdefault(score.seed, []).append(score.value)
    values = np.array([np.mean(same) for same in by_seed.values()])
    # Shorter first: seeds are text, and 10 comes after 9.
    ordered = sorted(scores, key=lambda score: (len(score.seed), score.seed, score.run.name))
    none = Difference(0.0, math.nan, math.nan, math.nan, math.nan)
    return Group(label, settings, tuple(ordered), values, *mean_and_std(values), none)


def _effects(groups: Sequence[Group], names: Sequence[str]) -> dict[str, Effect]:
    columns = list(zip(*(group.settings for group in groups), strict=True))
    orders = [in_order(column) for column in columns]
    effects = main_effects({group.settings: group.values for group in groups}, orders)
    # Not strict: without a full design there are names but no effects.
    found = dict(zip(names, effects, strict=False))
    return dict(sorted(found.items(), key=lambda item: -item[1].range))


def _goodput(runs: Sequence[Run]) -> list[str]:
    """Return where the wall time of the runs went, of those that stepped least first."""
    last = [(run.name, run.records[-1]) for run in runs if run.records]
    timed = [(record.get("goodput/stepping"), name, describe(record)) for name, record in last]
    worst = sorted(each for each in timed if each[0] is not None)
    return [f"Wall time of {name}: {text}." for _, name, text in worst[:_MAX_TIMED]]


def _notes(
    groups: Sequence[Group], others: Sequence[Score], names: Sequence[str], count: int
) -> list[str]:
    notes = []
    if baseline := _baseline([group.settings for group in groups]):
        told = ", ".join(f"{name}={value}" for name, value in zip(names, baseline, strict=True))
        notes.append(f"The baseline is {told}; the others are named by what they differ in.")
    if others:
        states = collections.Counter(
            f"{score.run.state} without a value" if score.run.state == FINISHED else score.run.state
            for score in others
        )
        told = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
        notes.append(f"{len(others)} of {count} runs are not compared: {told}.")
    steps = {score.last_step for group in groups for score in group.scores}
    if len(steps) > 1:
        notes.append(f"The last values are of different steps, {min(steps)} to {max(steps)}.")
    repeated = sum(len(group.scores) - len(group.values) for group in groups)
    if repeated:
        notes.append(
            f"{repeated} of the runs repeat settings and seed of another: their mean counts once."
        )
    return notes
