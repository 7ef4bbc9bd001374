"""Configurations from the command line: `--config=FILE` and `--config.FIELD=VALUE`."""

import ast
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

import configs
from configs import from_json
from groupvit_jax.eval import evaluators
from groupvit_jax.foreign import naming
from groupvit_jax.runs import checkpoints, validation
from groupvit_jax.runs.config_check import FREE_FIELDS, flatten
from groupvit_jax.runs.fields import FIELDS
from groupvit_jax.train.tasks import find_task_errors

_OVERRIDE = re.compile(r"--?(?P<no>no)?config\.(?P<field>[^=]+)(=(?P<value>.*))?", re.DOTALL)
_JSON_CONFIG = re.compile(r"(--?config=)([^:]+\.json)$")


def read(argv: Sequence[str]) -> tuple[ConfigDict, dict[str, str]]:
    """Return the configuration that a command line describes; its other flags are ignored.

    Args:
      argv: the command line, the program's name first.

    Returns:
      The configuration, and by field a line for each override that could not be applied.

    Raises:
      ValueError: no or an unreadable `--config`.
    """
    argv = normalised(argv)
    paths = [argument for argument in argv if re.match("--?config=.", argument)]
    if not paths:
        raise ValueError("--config: missing, expected --config=FILE")
    config = _load(paths[-1].partition("=")[2])
    given: dict[str, list[str]] = {}  # a tuple may be given item by item
    for match in map(_OVERRIDE.fullmatch, argv):
        if match:
            given.setdefault(match["field"], []).append(match[0])
    overrides = _Overrides(config)
    errors = {field: overrides.apply(field, arguments) for field, arguments in given.items()}
    overrides.config.lock()
    return overrides.config, {field: error for field, error in errors.items() if error}


def read_valid(
    argv: Sequence[str], workdir: Path | str | None = None
) -> tuple[ConfigDict, Sequence[str]]:
    """Return the configuration of a command line, with a line for every error of it.

    Args:
      argv: see `read`.
      workdir: the run's folder; a run that goes on there needs no file to start from.

    Raises:
      ValueError: see `read`.
    """
    config, errors = read(argv)
    return config, [*errors.values(), *find_errors(config, workdir, reported=errors)]


def find_errors(
    config: ConfigDict, workdir: Path | str | None = None, reported: Iterable[str] = ()
) -> list[str]:
    """Return a line for every error of a configuration; see `runs.validation.validate`."""
    return validation.validate(
        config,
        find_task_errors,
        evaluators.find_evaluator_errors,
        resumes=workdir is not None and checkpoints.has_checkpoints(workdir),
        reported=reported,
    )


def overrides_in(argv: Sequence[str]) -> list[str]:
    """Return the arguments that change fields."""
    return [argument for argument in argv if _OVERRIDE.fullmatch(argument)]


def normalised(argv: Sequence[str]) -> list[str]:
    """Make --config FILE one argument, and a recorded config.json a configuration file."""
    # No argument can hold a zero byte.
    text = "\0".join(argv)
    # A flag that follows is no value: --config is then incomplete, and stays so.
    text = re.sub(r"(?<=\0)(--?config)\0(?!-)", r"\1=", text)
    reader = Path(configs.__path__[0]) / "from_json.py"
    return [_JSON_CONFIG.sub(rf"\1{reader}:\2", argument) for argument in text.split("\0")]


def _load(path: str) -> ConfigDict:
    file, _, recorded = path.partition(":")
    if not Path(file).is_file():
        raise ValueError(f"--config={file}: no such file")
    if recorded.endswith(".json"):
        with naming(recorded):  # the flag's own errors quote a traceback
            from_json.get_config(recorded)
    # Flags of its own: a process may read many configurations, and a name is defined once.
    values = flags.FlagValues()
    argv = ["", f"--config={path}"]
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    config = holder.value
    try:
        config.unlock()
    except OSError as error:  # of the file, at the first access
        raise ValueError(f"--config={file}: {error}") from error
    return config


class _Overrides:
    """Applies overrides to a configuration, one field after another."""

    def __init__(self, config: ConfigDict) -> None:
        self.config = config

    def apply(self, field: str, arguments: Sequence[str]) -> str | None:
        """Give a field another value, or return the line that says why not."""
        known = flatten(self.config.to_dict(), free=())
        value = arguments[-1].partition("=")[2]
        if "[" in field:
            name = field.partition("[")[0]
            whole = f"the whole value: --config.{name}='{known.get(name)}'"
            return validation.line(field, value, whole)
        is_section = field in FREE_FIELDS or any(name.startswith(f"{field}.") for name in known)
        if value == "None" and field in known and self._takes_none(field):
            self._set(field, None)
        elif field in known or is_section:
            try:
                self._parse(arguments)
            except (flags.Error, ValueError, TypeError, KeyError, SyntaxError):
                return validation.line(field, value, _expected(field, known))
        elif self._is_documented(field):
            self._set(field, _literal(value))
        else:
            return validation.unknown(field, known)
        return None

    def _parse(self, arguments: Sequence[str]) -> None:
        """Apply the arguments of one field by the type of its value."""
        values, argv = flags.FlagValues(), ["", *arguments]
        holder = config_flags.DEFINE_config_dict(
            "config", self.config, flag_values=values, sys_argv=argv, lock_config=False
        )
        values(argv)
        self.config = holder.value

    def _takes_none(self, field: str) -> bool:
        """Whether None is a value: of a placeholder in the table, or of a source's field."""
        return FIELDS[field].holds(None) if field in FIELDS else self._is_documented(field)

    def _is_documented(self, field: str) -> bool:
        """Whether a source or an evaluator of this configuration has such a field, set or not."""
        task = self.config.get("task", "")
        kinds_of = {
            "data.sources": validation.SOURCES.get(task, {}),
            "evaluators": evaluators.FIELDS,
        }
        for section, kinds in kinds_of.items():
            name, _, leaf = field.removeprefix(f"{section}.").partition(".")
            entry = self._get(section).get(name)
            if field.startswith(f"{section}.") and isinstance(entry, ConfigDict):
                return leaf.partition(".")[0] in ("kind", *kinds.get(entry.get("kind"), ()))
        return False

    def _get(self, section: str) -> Any:
        return functools.reduce(lambda config, name: config[name], section.split("."), self.config)

    def _set(self, field: str, value: Any) -> None:
        section, _, name = field.rpartition(".")
        target = self._get(section) if section else self.config
        with target.ignore_type():
            target[name] = value


def _expected(field: str, known: Mapping[str, Any]) -> str:
    if field in FIELDS:
        return FIELDS[field].expected
    return f"a value like {known[field]!r}" if field in known else f"--config.{field}.NAME=VALUE"


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
