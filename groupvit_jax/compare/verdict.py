"""The verdict in words: the best settings, their lead, and whether it may be noise."""

import math
from typing import NamedTuple

from groupvit_jax.compare.groups import Comparison, Group
from groupvit_jax.compare.statistics import LEVEL, Difference, Effect, Level

_LEAST = 0.001
APART, NOISE, UNKNOWN = "apart", "maybe noise", "cannot tell"


class Verdict(NamedTuple):
    """One of the three kinds above, and sentences for people."""

    kind: str
    text: str


def judge(comparison: Comparison) -> Verdict:
    """Compare the first group with the others."""
    groups = comparison.groups
    if not groups:
        return Verdict(UNKNOWN, "Cannot tell: no run has finished with a value of the metric.")
    if len(groups) == 1:
        return Verdict(
            UNKNOWN, f"Nothing to compare with: {_described(comparison, groups[0])} is alone."
        )
    first, second = groups[:2]
    difference = second.behind
    rest = _rest(comparison) + _largest_effect(comparison)
    if difference.value == 0.0:
        text = f"A tie: {_described(comparison, first)} and {_described(comparison, second)}."
        # NaN compares false: without a test, a tie may be chance as well.
        return Verdict(NOISE if difference.p >= LEVEL else UNKNOWN, text + rest)
    gap = comparison.format.difference(difference.value)
    direction = "ahead of" if comparison.metric.mode == "max" else "below"
    value = comparison.format.full(first.mean, first.std)
    lead = (
        f"{_code(first)} is first: {value} (n={len(first.values)}), {gap} {direction} the second, "
        f"{_described(comparison, second)}."
    )
    if math.isnan(difference.p):
        why = f"Cannot tell whether that is noise: {_why(first, second)}."
        return Verdict(UNKNOWN, f"{lead} {why}{_largest_effect(comparison)}")
    kind = APART if difference.p < LEVEL else NOISE
    return Verdict(kind, f"{lead} {_sure(comparison, difference)}{rest}")


def _code(group: Group) -> str:
    """The label between backticks, which settings from outside must not close."""
    label = group.label.replace("`", "'")
    return f"`{' '.join(label.split())}`"


def _described(comparison: Comparison, group: Group) -> str:
    value = comparison.format.full(group.mean, group.std)
    return f"{_code(group)} ({value}, n={len(group.values)})"


def _why(first: Group, second: Group) -> str:
    if len(first.values) == len(second.values) == 1:
        return "one seed each"
    if min(len(first.values), len(second.values)) == 1:
        return f"one seed of {_code(first if len(first.values) == 1 else second)}"
    return "the seeds of each make no difference at all"


def _sure(comparison: Comparison, difference: Difference) -> str:
    test = f"Welch's t, {p_equals(difference.p)}"
    errors = f"The difference is {abs(difference.t):.1f} of its standard errors ({test})"
    if difference.p < LEVEL:
        return f"{errors}: not noise."
    needed = comparison.format.difference(difference.needed)
    return f"{errors}: may be noise, {needed} would have been needed to tell."


def _rest(comparison: Comparison) -> str:
    """The sentence about the third and later groups."""
    others = comparison.groups[2:]
    # Negated, so that NaN (too few seeds to test) counts as alike.
    alike = [group for group in others if not group.behind.p < LEVEL]
    if not alike:
        return ""
    if len(others) == 1:
        return " The third can't be told from the first either."
    if len(alike) == len(others):
        return f" None of the other {len(others)} can be told from the first either."
    return f" {len(alike)} of the other {len(others)} can't be told from the first either."


def _largest_effect(comparison: Comparison) -> str:
    """The sentence about the setting with the largest significant main effect."""
    for name, effect in comparison.effects.items():
        if effect.p < LEVEL:
            best, worst = best_and_worst(comparison, effect)
            gap = comparison.format.difference(effect.range)
            return (
                f" Over all else, `{name}` does most: {gap} from {worst.value} to {best.value} "
                f"({p_equals(effect.p)})."
            )
    return ""


def best_and_worst(comparison: Comparison, effect: Effect) -> tuple[Level, Level]:
    """Return the values of a setting with the best and the worst mean."""
    ordered = sorted(effect.levels, key=lambda level: comparison.metric.sign * level.mean)
    return ordered[-1], ordered[0]


def p_equals(p: float) -> str:
    """Return "p = 0.012" or "p < 0.001"."""
    return f"p < {_LEAST}" if p < _LEAST else f"p = {show_p(p)}"


def show_p(p: float) -> str:
    """Return p with two or three decimals, "" for NaN."""
    if math.isnan(p):
        return ""
    return f"<{_LEAST}" if p < _LEAST else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
