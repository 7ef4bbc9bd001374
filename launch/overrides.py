"""Configurations from the command line: `--config=FILE` and `--config.FIELD=VALUE`."""

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

import configs
from groupvit_jax.eval import evaluators
from groupvit_jax.runs import checkpoints, validation
from groupvit_jax.runs.config_check import flatten
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
    errors = {}
    for field, arguments in given.items():
        config, error = _override(config, field, arguments)
        if error:
            errors[field] = error
    config.lock()
    return config, errors


def read_valid(
    argv: Sequence[str], workdir: Path | None = None
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
    config: ConfigDict, workdir: Path | None = None, reported: Iterable[str] = ()
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
    text = "\0".join(argv)
    text = re.sub(r"(?<=\0)(--?config)\0(?!-)", r"\1=", text)
    reader = Path(configs.__path__[0]) / "from_json.py"
    return [_JSON_CONFIG.sub(rf"\1{reader}:\2", argument) for argument in text.split("\0")]


def _load(path: str) -> ConfigDict:
    file = path.partition(":")[0]
    if not Path(file).is_file():
        raise ValueError(f"--config={file}: no such file")
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


def _override(
    config: ConfigDict, field: str, arguments: Sequence[str]
) -> tuple[ConfigDict, str | None]:
    """Returns the configuration with another value, or the line that says why not."""
    known = flatten(config, free=())
    value = arguments[-1].partition("=")[2]
    if "[" in field:
        name = field.partition("[")[0]
        whole = f"the whole value: --config.{name}='{known.get(name)}'"
        return config, validation.line(field, value, whole)
    if _takes_none(config, field, known) and value == "None":
        _set(config, field, None)
        return config, None
    if field in known or any(name.startswith(f"{field}.") for name in known) or (
        field in ("data.sources", "evaluators")
    ):  # fmt: skip
        try:
            return _parse(config, arguments), None
        except (flags.Error, ValueError, TypeError, KeyError, SyntaxError):
            return config, validation.line(field, value, _expected(field, known))
    if _is_documented(config, field):
        _set(config, field, _literal(value))
        return config, None
    return config, validation.unknown(field, known)


def _expected(field: str, known: Mapping[str, Any]) -> str:
    if field in FIELDS:
        return FIELDS[field].expected
    return f"a value like {known[field]!r}" if field in known else f"--config.{field}.NAME=VALUE"


def _parse(config: ConfigDict, arguments: Sequence[str]) -> ConfigDict:
    """Applies the arguments of one field by the type of its value."""
    values, argv = flags.FlagValues(), ["", *arguments]
    holder = config_flags.DEFINE_config_dict(
        "config", config, flag_values=values, sys_argv=argv, lock_config=False
    )
    values(argv)
    return holder.value


def _takes_none(config: ConfigDict, field: str, known: Mapping[str, Any]) -> bool:
    """Whether None is a value of the field: a placeholder of the table, or a free field."""
    if field in FIELDS:
        return field in known and FIELDS[field].holds(None)
    return field in known and _is_documented(config, field)


def _is_documented(config: ConfigDict, field: str) -> bool:
    """Whether a source or an evaluator of this configuration has such a field, set or not."""
    for section, kinds in (
        ("data.sources", validation.SOURCES.get(config.get("task", ""), {})),
        ("evaluators", evaluators.FIELDS),
    ):
        name, _, leaf = field.removeprefix(f"{section}.").partition(".")
        entries = config.data.sources if section == "data.sources" else config.evaluators
        if field.startswith(f"{section}.") and isinstance(entries.get(name), ConfigDict):
            return leaf.partition(".")[0] in ("kind", *kinds.get(entries[name].get("kind"), ()))
    return False


def _set(config: ConfigDict, field: str, value: Any) -> None:
    section, _, name = field.rpartition(".")
    target = config
    for part in section.split("."):
        target = target[part]
    with target.ignore_type():
        target[name] = value


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
