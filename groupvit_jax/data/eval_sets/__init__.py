"""The evaluation sets of the field, read from their official downloads; see docs/benchmarks.md."""

import importlib
import pkgutil

from groupvit_jax.data.eval_sets.mask_files import class_names
from groupvit_jax.data.eval_sets.registry import (
    Benchmark,
    ClassificationSet,
    ProbeSet,
    RetrievalSet,
    SegmentationSet,
    names,
    open_benchmark,
    register,
)

# Importing a module registers its sets, so adding a set means adding a file.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

NAMES = names()

__all__ = ["NAMES", "Benchmark", "ClassificationSet", "ProbeSet", "RetrievalSet", "SegmentationSet"]
__all__ += ["class_names", "names", "open_benchmark", "register"]
