"""The configuration that a run records, and what may change in it between two starts."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from groupvit_jax.runs.config_check import differences
from groupvit_jax.runs.files import read_json, write_json
from groupvit_jax.runs.layout import CONFIG_FILE

logger = logging.getLogger(__name__)

# Parameters of one model can't continue as another model's. Another vocabulary is found by its
# content, not by the path in `data.tokenizer`, which may move.
FIXED_FIELDS = ("model.", "data.tokenizer.name", "task", "segmentation.class_names")
# These change how the model is computed, not what it computes.
EXECUTION_FIELDS = ("model.kernels", "model.scan_layers", "model.remat", "model.fused_attention")

# What was done before there was a choice: values of fields that older records lack, where it is
# not what a new run does.
_EARLIER: dict[str, Any] = {
    "optimizer.scaled_rates": "peak",
    "optimizer.update_lag": 0,
    # Kept, because an average can't begin in the middle of a run.
    "optimizer.ema_decay": 0.0,
}
# A resumed run keeps these as it began, although the defaults of configs have changed since.
KEPT_FIELDS = (*_EARLIER, "data.noun_kind")


def write_config(config: Mapping[str, Any], workdir: Path) -> None:
    """Write the resolved configuration of a run."""
    write_json(workdir / CONFIG_FILE, config)


def config_from_json(path: Path) -> ConfigDict:
    """Return the configuration that `write_config` wrote, with the fields that older ones lack.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it holds no configuration.
    """
    recorded = config_from_dict(read_json(path, f"a run's {CONFIG_FILE}"))
    for field, value in _EARLIER.items():
        section, _, name = field.rpartition(".")
        if isinstance(fields := recorded.get(section), ConfigDict) and name not in fields:
            fields[name] = value
    return recorded


def config_from_dict(values: Mapping[str, Any]) -> ConfigDict:
    """Return a configuration from JSON's values, lists as tuples.

    JSON has no tuples, and `ConfigDict` takes a list for another type than the tuple it was.
    """
    return ConfigDict(lists_as_tuples(values))


def lists_as_tuples(value: Any) -> Any:
    """Return the value with tuples in place of lists, at every depth."""
    if isinstance(value, Mapping):
        return {name: lists_as_tuples(item) for name, item in value.items()}
    return tuple(map(lists_as_tuples, value)) if isinstance(value, list | tuple) else value


def changed(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """Return a copy of a configuration with other values, by dotted field."""
    copy = config.copy_and_resolve_references()
    with copy.unlocked():  # older records lack some fields
        copy.update_from_flattened_dict(changes)
    return copy


def keep_recorded(config: ConfigDict, workdir: Path) -> ConfigDict:
    """Return the configuration of a resumed run: `KEPT_FIELDS` have their recorded values."""
    path = workdir / CONFIG_FILE
    if not path.exists():
        return config
    kept = config.copy_and_resolve_references()
    recorded = config_from_json(path)
    for field in KEPT_FIELDS:
        section, _, name = field.rpartition(".")
        new = kept[section][name]
        old = recorded.get(section, {}).get(name, new)
        if old != new:
            logger.warning(
                "config.%s: %r, with which the run of %s began, is kept in place of %r; use "
                "another --workdir to change it",
                *(field, old, workdir, new),
            )
            kept[section][name] = old
    return kept


def check_same_run(config: ConfigDict, workdir: Path, resuming: bool) -> None:
    """Compare the configuration with that of the workdir's last start.

    Another model or tokenizer is an error if there is a checkpoint to resume from; any other
    difference is logged, and the run continues with the new value (`keep_recorded` has kept some
    before). A field that the recorded configuration lacks is no difference: it was added to the
    code since, and its default, or that of `_EARLIER`, describes the run as it was.

    Raises:
      ValueError: model or tokenizer differ.
    """
    path = workdir / CONFIG_FILE
    if not path.exists():
        return
    changed = differences(config_from_json(path).to_dict(), config.to_dict())
    lines = [f"config.{field}: {old!r} -> {new!r}" for field, (old, new) in changed.items()]
    fixed = [
        line
        for (field, (old, _)), line in zip(changed.items(), lines, strict=True)
        if old is not None and field.startswith(FIXED_FIELDS) and field not in EXECUTION_FIELDS
    ]
    if fixed and resuming:
        raise ValueError(
            f"--workdir={workdir}: holds checkpoints of another model ({'; '.join(fixed)}); use "
            "another --workdir, or --config.init_from to start from its parameters"
        )
    for line in lines:
        logger.warning("the configuration of %s changes: %s", workdir, line)
