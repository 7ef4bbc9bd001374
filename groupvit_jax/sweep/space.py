"""Search spaces: lists of overrides, built and combined by pure functions.

A sweep file's `get_sweep()` returns one mapping a trial, from configuration fields to values. The
functions are named after those of the `hyper` argument that other launchers of ml_collections
configurations pass: `sweep`, `product`, `zip_` (zipit), `chain` (chainit).
"""

import itertools
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Overrides = dict[str, Any]
Draw = Callable[[random.Random], Any]


def sweep(field: str, values: Iterable[Any]) -> list[Overrides]:
    """Return one trial for each value of a field.

    Args:
      field: dotted path in the configuration, such as "optimizer.learning_rate".
      values: values of the field.
    """
    return [{field: value} for value in values]


def product(sweeps: Iterable[Iterable[Overrides]]) -> list[Overrides]:
    """Return every combination of one trial of each sweep; the last varies fastest.

    Raises:
      ValueError: two of the sweeps set the same field.
    """
    return [_merged(parts) for parts in itertools.product(*sweeps)]


def zip_(sweeps: Iterable[Iterable[Overrides]]) -> list[Overrides]:
    """Return the first trials of all sweeps as one trial, the second ones, and so on.

    Raises:
      ValueError: the sweeps differ in length, or two of them set the same field.
    """
    columns = [list(column) for column in sweeps]
    lengths = [len(column) for column in columns]
    if len(set(lengths)) > 1:
        raise ValueError(f"zip_: sweeps of {lengths} trials found, expected equal numbers")
    return [_merged(parts) for parts in zip(*columns, strict=True)]


def chain(sweeps: Iterable[Iterable[Overrides]]) -> list[Overrides]:
    """Return the trials of all sweeps, one sweep after another."""
    return list(itertools.chain.from_iterable(sweeps))


def sample(distributions: Mapping[str, Draw], count: int, seed: int = 0) -> list[Overrides]:
    """Return trials with values drawn at random, each field independently of the others.

    The draws are a function of the arguments, each field with a generator of its own: a larger
    count keeps the first trials, another field keeps the values of the others. A sweep can so be
    extended without repeating its trials.

    Args:
      distributions: distribution of each field: `uniform`, `log_uniform` or `choice`.
      count: number of trials.
      seed: seed of the draws.
    """
    columns = [
        [{field: draw(generator)} for _ in range(count)]
        for field, draw in distributions.items()
        # A text is hashed by `random` itself, the same in every process, unlike by `hash`.
        for generator in [random.Random(f"{seed} {field}")]
    ]
    return zip_(columns) if columns else [{} for _ in range(count)]


def uniform(low: float, high: float, digits: int = 3) -> Draw:
    """Return a uniform draw from `low` to `high`, rounded to `digits` significant digits.

    Raises:
      ValueError: `low` is not below `high`.
    """
    if not low < high:
        raise ValueError(f"uniform: from {low} to {high} found, expected the smaller value first")
    return lambda generator: _rounded(generator.uniform(low, high), digits)


def log_uniform(low: float, high: float, digits: int = 3) -> Draw:
    """Return a draw whose logarithm is uniform, rounded to `digits` significant digits.

    Raises:
      ValueError: not 0 < `low` < `high`.
    """
    if not 0 < low < high:
        raise ValueError(
            f"log_uniform: from {low} to {high} found, expected positive values, the smaller first"
        )
    logs = math.log(low), math.log(high)
    return lambda generator: _rounded(math.exp(generator.uniform(*logs)), digits)


def choice(values: Sequence[Any]) -> Draw:
    """Return a draw of one of the values, all equally likely.

    Raises:
      ValueError: there is no value.
    """
    if not values:
        raise ValueError("choice: no values found, expected at least one")
    return lambda generator: generator.choice(values)


def _merged(parts: Iterable[Overrides]) -> Overrides:
    merged: Overrides = {}
    for part in parts:
        if twice := merged.keys() & part.keys():
            raise ValueError(f"{', '.join(sorted(twice))}: set by two of the combined sweeps")
        merged |= part
    return merged


def _rounded(value: float, digits: int) -> float:
    # `round` counts decimals, of which small rates would keep none.
    return float(f"{value:.{digits}g}")
