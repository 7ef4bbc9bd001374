"""Reads a sweep file, and finds what is wrong with its trials before any starts."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from groupvit_jax.runs.sweep_files import Sweep, Trial
from groupvit_jax.runs.validation import line, rule_of
from groupvit_jax.sweep import checks
from groupvit_jax.sweep.trials import flag_of, make_trial, override_label, plain
from launch import overrides as overrides_lib


class Planned(NamedTuple):
    """A sweep as its file and the command's flags override_label it.

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
    """Read a sweep file and resolve the configuration of each trial.

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
    base, wrong = overrides_lib.read(command)
    if wrong:
        raise ValueError("; ".join(wrong.values()))
    if base.wandb_project and not base.wandb_group:
        arguments = [*arguments, flag_of("wandb_group", name)]
        command.append(arguments[-1])
    trials: list[Trial] = []
    configs: dict[int, ConfigDict] = {}
    errors: dict[int, str] = {}
    notes = []
    for i, overrides in enumerate(_trials(module, file)):
        found, wrong = _resolve(command, overrides)
        if wrong:
            lines = [*wrong.values(), *overrides_lib.find_errors(found, reported=wrong)]
            errors[i] = _error(i, overrides, lines)
            continue
        trial = make_trial(len(trials), overrides, found.to_dict())
        same = [t for t in trials if t.config_sha256 == trial.config_sha256]
        if same:
            is_by = override_label(same[0].overrides)
            notes.append(
                f"{override_label(overrides)}: the same configuration as {is_by}, left out"
            )
            continue
        trials.append(trial)
        configs[i] = found
    metric = metric or getattr(module, "METRIC", "") or base.checkpoint.best_metric
    mode = base.checkpoint.best_mode
    sweep = Sweep(name, path, tuple(arguments), metric, mode, tuple(trials))
    return Planned(sweep, configs, errors, notes)


def check(planned: Planned, root: Path) -> list[str]:
    """Return a line for each trial that could not train, also those that could not be read."""
    errors = dict(planned.errors)
    for trial, (i, config) in zip(planned.sweep.trials, planned.configs.items(), strict=True):
        workdir = root / trial.folder
        lines = overrides_lib.find_errors(config, workdir)
        if not lines and (error := checks.find_error(config, workdir)):
            lines = [error]
        if lines:
            errors[i] = _error(i, trial.overrides, lines)
    return [errors[i] for i in sorted(errors)]


def _error(number: int, overrides: Mapping[str, Any], lines: Sequence[str]) -> str:
    return f"trial {number} ({override_label(overrides)}): {'; '.join(lines)}"


def _resolve(
    command: Sequence[str], overrides: Mapping[str, Any]
) -> tuple[ConfigDict, dict[str, str]]:
    """Apply a trial's overrides as its command does; return a line by field that is wrong."""
    flags = {field: flag_of(field, value) for field, value in overrides.items()}
    config, errors = overrides_lib.read([*command, *flags.values()])
    for field, value in overrides.items():
        if field in errors:
            continue
        found = functools.reduce(lambda section, name: section[name], field.split("."), config)
        if not _is_kept(found, value):
            rule = rule_of(field)
            expected = rule.expected if rule else "a value that a flag can hold"
            errors[field] = line(field, value, expected)
    return config, errors


def _is_kept(found: Any, value: Any) -> bool:
    """Whether a field holds the sweep file's value after it has passed through a flag."""
    # True == 1 in Python, so the kinds are compared as well.
    found = plain(found.to_dict() if isinstance(found, ConfigDict) else found)
    return found == plain(value) and isinstance(found, bool) == isinstance(value, bool)


def _load(file: str) -> ModuleType:
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"--sweep={file}: no such file")
    if path.suffix != ".py":
        raise ValueError(f"--sweep={file}: expected a Python file with get_sweep()")
    # Not by an import, which would take the bytecode of a file of the same size and second.
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    exec(compile(path.read_bytes(), path, "exec"), vars(module))
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
