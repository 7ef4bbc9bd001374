"""Reads a sweep file, and finds what is wrong with its trials before any starts."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from absl import flags as absl_flags
from ml_collections import ConfigDict

from groupvit_jax.runs import config_check
from groupvit_jax.runs.sweep_files import Sweep, Trial
from groupvit_jax.sweep import checks
from groupvit_jax.sweep.trials import describe, flag_of, make_trial, plain
from launch import common


class Planned(NamedTuple):
    """What a sweep file and the command's flags describe.

    Attributes:
      sweep: with the trials whose configuration could be read.
      configs: of these trials, by their number in the sweep file.
      errors: one line for each other trial, by its number there.
      notes: what is worth to be said.
    """

    sweep: Sweep
    configs: Mapping[int, ConfigDict]
    errors: Mapping[int, str]
    notes: Sequence[str]


def plan(
    file: str, name: str, *, config: str = "", arguments: Sequence[str] = (), metric: str = ""
) -> Planned:
    """Reads a sweep file and resolves the configuration of each trial.

    Args:
      file: path of the sweep file.
      name: of the sweep.
      config: file of the base configuration, in place of the sweep file's.
      arguments: `--config.FIELD=VALUE`, for all trials.
      metric: that the trials are compared by, in place of the sweep file's.

    Raises:
      ValueError: the sweep file is wrong, or the base configuration.
    """
    module = _load(file)
    path = config or getattr(module, "BASE", "")
    if not path:
        raise ValueError(f"{file}: no BASE found, expected BASE = 'configs/X.py' or --config=FILE")
    command = ["launch.train", f"--config={path}", *arguments]
    base = _parse(command)
    if base.wandb_project and not base.wandb_group:
        arguments = [*arguments, flag_of("wandb_group", name)]
        command.append(arguments[-1])
    resolved = _Resolver(command)
    trials: list[Trial] = []
    configs, errors, notes = {}, {}, []
    for i, overrides in enumerate(_trials(module, file)):
        found, error = resolved(overrides)
        if found is None:
            errors[i] = f"trial {i} ({describe(overrides)}): {error}"
            continue
        trial = make_trial(len(trials), overrides, found)
        same = [t for t in trials if t.config_sha256 == trial.config_sha256]
        if same:
            is_by = describe(same[0].overrides)
            notes.append(f"{describe(overrides)}: the same configuration as {is_by}, left out")
            continue
        trials.append(trial)
        configs[i] = found
    metric = metric or getattr(module, "METRIC", "") or base.checkpoint.best_metric
    mode = base.checkpoint.best_mode
    sweep = Sweep(name, path, tuple(arguments), metric, mode, tuple(trials))
    return Planned(sweep, configs, errors, notes)


def check(planned: Planned, root: Path) -> list[str]:
    """Returns a line for each trial that could not train, also those that could not be read."""
    errors = dict(planned.errors)
    for trial, (i, config) in zip(planned.sweep.trials, planned.configs.items(), strict=True):
        if error := checks.find_error(config, root / trial.folder):
            errors[i] = f"trial {i} ({describe(trial.overrides)}): {error}"
    return [errors[i] for i in sorted(errors)]


class _Resolver:
    """Applies overrides to the base as the command of a trial does, finding all that are wrong."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._errors: dict[str, str] = {}  # of each override alone, which many trials share

    def __call__(self, overrides: Mapping[str, Any]) -> tuple[ConfigDict | None, str]:
        flags = {field: flag_of(field, value) for field, value in overrides.items()}
        alone = [self._error(field, flag, overrides[field]) for field, flag in flags.items()]
        if wrong := [error for error in alone if error]:
            return None, "; ".join(wrong)
        try:
            return _parse([*self._command, *flags.values()]), ""
        except ValueError as error:
            return None, str(error)

    def _error(self, field: str, flag: str, value: Any) -> str:
        if flag not in self._errors:
            self._errors[flag] = self._find_error(field, flag, value)
        return self._errors[flag]

    def _find_error(self, field: str, flag: str, value: Any) -> str:
        try:
            config = _parse([*self._command, flag])
        except ValueError as error:
            return " ".join(str(error).split())
        found: Any = config
        for name in field.split("."):
            found = found[name]
        found = plain(found.to_dict() if isinstance(found, ConfigDict) else found)
        if found != plain(value) or isinstance(found, bool) != isinstance(value, bool):
            return f"config.{field}: {value!r} found, expected a value like {self._base(field)!r}"
        return ""

    def _base(self, field: str) -> Any:
        return config_check.flatten(_parse(self._command), free=()).get(field)


def _parse(command: Sequence[str]) -> ConfigDict:
    try:
        return common.parse_config(command)
    except (absl_flags.Error, TypeError, OSError) as error:
        raise ValueError(str(error)) from error


def _load(file: str) -> ModuleType:
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"--sweep={file}: no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--sweep={file}: expected a Python file with get_sweep()")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_sweep"):
        raise ValueError(f"--sweep={file}: no get_sweep() found")
    return module


def _trials(module: ModuleType, file: str) -> list[Mapping[str, Any]]:
    trials = list(module.get_sweep())
    for i, trial in enumerate(trials):
        if not isinstance(trial, Mapping) or not all(isinstance(field, str) for field in trial):
            raise ValueError(f"{file}: trial {i} is {trial!r}, expected {{'FIELD': VALUE, ...}}")
    if not trials:
        raise ValueError(f"{file}: get_sweep() returns no trial, expected at least one")
    return trials
