"""Sweeps: many runs that differ in some settings, in one folder."""

from groupvit_jax.sweep.space import (
    Overrides,
    chain,
    choice,
    log_uniform,
    product,
    sample,
    sweep,
    uniform,
    zip_,
)

__all__ = [
    "Overrides",
    "chain",
    "choice",
    "log_uniform",
    "product",
    "sample",
    "sweep",
    "uniform",
    "zip_",
]
