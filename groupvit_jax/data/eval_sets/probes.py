"""Probes of the image embedding: trained on a set's `train`, evaluated on its `val`.

NAME_linear_probe and NAME_knn, for each classification set NAME that has both splits.
"""

from functools import partial
from pathlib import Path

from groupvit_jax.data.eval_sets.registry import (
    ClassificationSet,
    ProbeSet,
    open_benchmark,
    register,
)

_SETS = ("imagenet", "image_folder")


def open_probe(set_name: str, probe: str, data_dir: Path) -> ProbeSet:
    """Open both splits; raise ValueError if their classes differ."""
    train, val = (open_benchmark(set_name, data_dir, split) for split in ("train", "val"))
    assert isinstance(train, ClassificationSet)
    assert isinstance(val, ClassificationSet)
    if train.class_names != val.class_names:
        different = sorted(set(train.class_names) ^ set(val.class_names))
        raise ValueError(
            f"{set_name}: class {different[0]!r} found in one of train and val only, expected the "
            f"same classes in both ({len(different)} differ)"
        )
    return ProbeSet(train.source, val.source, train.class_names, probe)


for _set in _SETS:
    for _probe in ("linear_probe", "knn"):
        register(f"{_set}_{_probe}")(partial(open_probe, _set, _probe))
