"""Choice of the metric to compare runs by, and the format of its values."""

import difflib
import math
from collections.abc import Sequence
from typing import NamedTuple

from groupvit_jax.eval.results import COLUMNS
from groupvit_jax.runs.reading import Run

# Endings of the names of metrics where less is better; all others are maximised.
_LESS_IS_BETTER = ("loss", "_norm", "seconds", "seconds_per_step", "error", "perplexity")


class Metric(NamedTuple):
    """A metric.

    Attributes:
      name: name in the metrics file.
      mode: "max" if more is better, else "min".
      why: the reason for this choice, to show to the user.
    """

    name: str
    mode: str
    why: str

    @property
    def sign(self) -> int:
        """1 if more is better, else -1."""
        return 1 if self.mode == "max" else -1

    @property
    def is_share(self) -> bool:
        """Whether it is recorded as a fraction, and shown in per cent."""
        _, _, end = self.name.partition("/")
        return end in COLUMNS or end.startswith("iou/") or end.endswith("_accuracy")


class Format(NamedTuple):
    """Format of values: a factor, the number of decimals, and a unit."""

    factor: float
    digits: int
    unit: str

    def plain(self, value: float) -> str:
        """Return a value without its unit; "-" for NaN."""
        return "-" if math.isnan(value) else f"{value * self.factor:.{self.digits}f}"

    def spread(self, mean: float, std: float) -> str:
        """Return mean and standard deviation; the mean alone where that is NaN."""
        return self.plain(mean) + ("" if math.isnan(std) else f" ± {self.plain(std)}")

    def full(self, mean: float, std: float = math.nan) -> str:
        """Return mean and standard deviation with the unit."""
        return self.spread(mean, std) + (" %" if self.unit else "")

    def difference(self, value: float) -> str:
        """Return a difference without its sign, in points for values in per cent."""
        shown, least = self.plain(abs(value)), self.plain(10.0**-self.digits / self.factor)
        if value and float(shown) == 0:
            shown = f"less than {least}"
        return shown + (" points" if self.unit else "")


def choose_metric(runs: Sequence[Run], name: str = "", mode: str = "") -> Metric:
    """Return the metric to compare by.

    By default it is the metric of the sweep or of `config.checkpoint.best_metric`, else the first
    evaluator's first metric in the order of `results.COLUMNS`, else the loss.

    Args:
      runs: the runs.
      name: name of the metric, "" for the default.
      mode: "max" or "min", "" to derive it from the name.

    Raises:
      ValueError: no run has recorded this metric, or any.
    """
    recorded = {key: None for run in runs for record in run.records for key in record}
    recorded.pop("step", None)
    if not recorded:
        raise ValueError(f"{len(runs)} runs: no metrics recorded yet, nothing to compare")
    if name and name not in recorded:
        raise ValueError(f"--metric={name}: no run has recorded it, {_instead(name, [*recorded])}")
    if name:
        why = "as asked for"
    else:
        name, why = _default(runs, [*recorded])
    return Metric(name, mode or _mode(runs, name), why)


def _instead(name: str, recorded: Sequence[str]) -> str:
    lower = {key.lower(): key for key in recorded}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.0)
    shown = [key for key in recorded if "/iou/" not in key]
    return f"the nearest is {lower[near[0]]}; recorded: {', '.join(shown)}"


def _default(runs: Sequence[Run], recorded: Sequence[str]) -> tuple[str, str]:
    for run in runs:
        if run.wanted[0] in recorded:
            return run.wanted[0], "of the sweep or config.checkpoint.best_metric"
    evaluators = [key.split(".")[1] for run in runs for key in run.config if _is_evaluator(key)]
    for evaluator in dict.fromkeys([*evaluators, *(key.split("/")[0] for key in recorded)]):
        for end in COLUMNS:
            if f"{evaluator}/{end}" in recorded:
                return f"{evaluator}/{end}", f"the first figure of the evaluator {evaluator}"
    if "loss" in recorded:
        return "loss", "no evaluator has recorded anything"
    return recorded[0], "the first that was recorded"


def _is_evaluator(field: str) -> bool:
    return field.startswith("evaluators.")


def _mode(runs: Sequence[Run], name: str) -> str:
    for run in runs:
        if run.wanted[0] == name:
            return run.wanted[1]
    return "min" if name.lower().endswith(_LESS_IS_BETTER) else "max"


def make_format(metric: Metric, values: Sequence[float]) -> Format:
    """Return a format with enough decimals to tell the values apart.

    Args:
      metric: metric of the values.
      values: values to tell apart.
    """
    factor = 100.0 if metric.is_share else 1.0
    finite = [value * factor for value in values if math.isfinite(value)]
    spread = max(finite, default=0.0) - min(finite, default=0.0)
    spread = spread or max(map(abs, finite), default=0.0) or 1.0
    # Two significant digits of the spread.
    digits = min(max(1 - math.floor(math.log10(spread)), 1), 8)
    return Format(factor, digits, "%" if metric.is_share else "")
