"""Finds all errors of a configuration at once, before any work is done for it.

A line names the field, what was found and what was expected. The fields one by one are checked by
the table of `runs.fields`, then the fields that have to fit each other. Errors that show only with
the data open, or that depend on the devices, are found by `train.setup`.
"""

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from groupvit_jax.data.pipeline import segmentation
from groupvit_jax.data.sources import pairs
from groupvit_jax.models import two_tower
from groupvit_jax.runs import fields as fields_lib
from groupvit_jax.runs.config_check import flatten, unknown_field
from groupvit_jax.runs.rules import Rule, number, text, truth

# A configuration's values by path, and the plain mappings "data.sources" and "evaluators".
Values = Mapping[str, Any]
FindErrors = Callable[[Values], Iterable[str]]

# Fields of sources by task and kind.
SOURCES = {"contrastive": pairs.FIELDS, "segmentation": segmentation.FIELDS}
_SOURCE_RULES: Mapping[str, Rule] = {
    "weight": number(over=0.0),
    "exchange_captions": truth(),
    "pattern": Rule(
        "one text; a comma or braces name several: 'a/{00..31}.tar,b/*.tar'",
        lambda value: isinstance(value, str) and not _is_written_list(value),
    ),
}


def validate(
    config: ConfigDict, *more: FindErrors, resumes: bool = False, reported: Iterable[str] = ()
) -> list[str]:
    """Return a line for every error of a configuration.

    Args:
      config: the whole configuration.
      *more: checks that need what stands above this package (tasks, evaluators).
      resumes: the run goes on from a checkpoint, which replaces `init_from`, `image_init_from`,
        `text_init_from` and the tokenizer's file where it is gone: none of these has to exist.
      reported: fields whose errors are known; neither they nor what depends on them is checked.
    """
    found = flatten(config.to_dict())
    values = found | {
        "data.sources": config.data.sources.to_dict(),
        "evaluators": config.evaluators.to_dict(),
    }
    wrong = set(reported)
    errors = []
    for field, value in found.items():
        rule = fields_lib.FIELDS.get(field)
        if field in wrong:
            continue
        if rule is None:
            errors.append(unknown(field))
        elif not rule.holds(value):
            wrong.add(field)
            errors.append(line(field, value, rule.expected))
    for field in sorted(fields_lib.FIELDS.keys() - found.keys() - wrong):
        wrong.add(field)
        errors.append(f"config.{field}: missing, expected {fields_lib.FIELDS[field].expected}")
    checks = [*_CHECKS, *([] if resumes else _PATHS)]
    for needed, check in checks:
        # A check relies on the types of the fields that it reads.
        if not any(field.startswith(needed) for field in wrong):
            errors += check(values)
    for find_errors in more:
        errors += find_errors(values)
    return errors


def rule_of(field: str) -> Rule | None:
    """Return the rule of a field, of a source too; None if it has none."""
    if field.startswith("data.sources."):
        return _SOURCE_RULES.get(field.rpartition(".")[2])
    return fields_lib.FIELDS.get(field)


def unknown(field: str, known: Iterable[str] = ()) -> str:
    """Return the line about a field that there is not.

    Args:
      field: its path.
      known: paths of fields beside those of `runs.fields`.
    """
    if field in fields_lib.MOVED:
        return f"config.{field}: moved, expected config.{fields_lib.MOVED[field]}"
    return unknown_field(field, [*fields_lib.FIELDS, *known])


def line(field: str, found: Any, expected: str) -> str:
    """Return the line that describes an error."""
    return f"config.{field}: {found!r} found, expected {expected}"


def check_named(
    field: str, entry: Any, kinds: Mapping[str, Iterable[str]], rules: Mapping[str, Rule]
) -> Iterator[str]:
    """Yield the errors of a source or an evaluator, whose `kind` says which fields it has.

    Args:
      field: path of the entry.
      entry: its fields.
      kinds: names of the fields by kind.
      rules: of fields by name; a field without one may be anything.
    """
    if not isinstance(entry, Mapping):
        yield line(field, entry, f"fields, among them kind: {' or '.join(map(repr, kinds))}")
        return
    kind = entry.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        yield line(f"{field}.kind", kind, " or ".join(map(repr, kinds)))
        return
    known = ("kind", *kinds[kind])
    for name, value in entry.items():
        if name not in known:
            yield f"config.{field}.{name}: no such field, {kind!r} has {', '.join(known)}"
        elif name in rules and not rules[name].holds(value):
            yield line(f"{field}.{name}", value, rules[name].expected)


def _model(values: Values) -> Iterable[str]:
    return two_tower.find_contradictions(_section(values, "model"))


def _section(values: Values, name: str) -> dict[str, Any]:
    """Return the nested fields of a section."""
    section: dict[str, Any] = {}
    for field, value in values.items():
        if field.startswith(f"{name}."):
            *sections, leaf = field.removeprefix(f"{name}.").split(".")
            target = section
            for each in sections:
                target = target.setdefault(each, {})
            target[leaf] = value
    return section


def _loss(values: Values) -> Iterator[str]:
    kind, bias = values["loss.kind"], values["model.initial_logit_bias"]
    # In a softmax a bias would cancel.
    if (kind == "sigmoid") != (bias is not None):
        yield (
            f"config.model.initial_logit_bias: {bias} found with config.loss.kind {kind!r}, "
            "expected a number (such as -10, with config.model.initial_temperature 0.1) for "
            "'sigmoid' and None for 'softmax'"
        )
    by_words = values["loss.local_weight"] or values["loss.pooled_weight"]
    if by_words and values["loss.local_words"] == "prompts" and not values["data.num_nouns"]:
        yield (
            "config.loss.local_words: 'prompts' found with config.data.num_nouns 0, expected "
            "'tokens' or prompts"
        )


def _methods(values: Values) -> Iterator[str]:
    taught = values["loss.distill_weight"]
    if taught and not values["optimizer.ema_decay"]:
        yield line("loss.distill_weight", taught, "0 without config.optimizer.ema_decay")
    if (weight := values["loss.noun_bank_weight"]) and not values["data.noun_bank"]:
        yield line("loss.noun_bank_weight", weight, "0 without config.data.noun_bank")
    tokens = values["model.image.num_group_tokens"]
    for field in ("loss.mixed_weight", "loss.superpixel_weight"):
        if values[field] and not any(tokens):
            expected = f"0 with config.model.image.num_group_tokens {tokens}, which groups nothing"
            yield line(field, values[field], expected)


def _texts(values: Values) -> Iterator[str]:
    length, longest = values["data.packed_length"], values["model.text.context_length"]
    if length < longest:
        yield line(
            "data.packed_length",
            length,
            f"at least config.model.text.context_length = {longest}, the longest caption",
        )


def _ranges(values: Values) -> Iterator[str]:
    if (area := values["data.augment.max_area"]) > 1:
        yield line("data.augment.max_area", area, "at most 1, the whole image")
    for name in ("data.augment.{}_area", "data.augment.{}_ratio", "segmentation.{}_scale"):
        low, high = (values[name.format(end)] for end in ("min", "max"))
        if low > high:
            expected = f"at most config.{name.format('max')} = {high:g}"
            yield line(name.format("min"), low, expected)


def _batches(values: Values) -> Iterator[str]:
    batch, micro = values["train.batch_size"], values["train.micro_batch_size"]
    if micro is not None and batch % micro:
        expected = f"a divisor of config.train.batch_size = {batch}"
        yield line("train.micro_batch_size", micro, expected)


def _sources(values: Values) -> Iterator[str]:
    kinds = SOURCES.get(values["task"])
    if kinds is None:
        return  # the task is the error
    rules = dict.fromkeys({name for names in kinds.values() for name in names}, text())
    entries = values["data.sources"]
    for name, entry in entries.items():
        yield from check_named(f"data.sources.{name}", entry, kinds, {**rules, **_SOURCE_RULES})
    with_weight = {
        name
        for name, entry in entries.items()
        if isinstance(entry, Mapping) and entry.get("weight") is not None
    }
    if with_weight and (without := sorted(entries.keys() - with_weight)):
        yield (
            f"config.data.sources.{without[0]}.weight: missing, expected a weight in all sources "
            "or in none"
        )


def _best_metric(values: Values) -> Iterator[str]:
    best, evaluators = values["checkpoint.best_metric"], values["evaluators"]
    if best and best.partition("/")[0] not in evaluators:
        names = ", ".join(evaluators) or "none"
        expected = f"EVALUATOR/METRIC with one of config.evaluators ({names})"
        yield line("checkpoint.best_metric", best, expected)


def _wandb(values: Values) -> Iterator[str]:
    project = values["wandb_project"]
    if project and importlib.util.find_spec("wandb") is None:
        yield (
            f"config.wandb_project: {project!r} found but wandb is not installed, expected '' or "
            "`pip install wandb`"
        )


def _starting_points(values: Values) -> Iterator[str]:
    for field, expected in (
        ("init_from", "a checkpoint, an export or a .pth, or '' to start from random weights"),
        ("image_init_from", "a plain ViT's file or directory (docs/pretrained.md), or ''"),
        ("text_init_from", "a Hugging Face directory of a BERT, a CLIP or a SigLIP, or ''"),
    ):
        if _is_gone(path := values[field]):
            yield (
                f"config.{field}: {path!r} found, where there is no file or folder, expected "
                f"{expected}"
            )


def _vocabulary(values: Values) -> Iterator[str]:
    name, path = values["data.tokenizer.name"], values["data.tokenizer.path"]
    if name == "clip":
        return
    if not path:
        kinds = {"sentencepiece": "a .model file", "wordpiece": "a BERT's vocab.txt"}
        yield line("data.tokenizer.path", path, f"{kinds[name]} (data.tokenizer.name is {name!r})")
    elif _is_gone(path):
        yield f"config.data.tokenizer.path: {path!r} found, where there is no file"


def _is_gone(path: str) -> bool:
    # What is at a URL shows when it is read.
    return bool(path) and "://" not in path and not Path(path).expanduser().exists()


def _is_written_list(value: str) -> bool:
    """Whether a text was meant to be a list; "[0-9].tar" is a pattern."""
    return value[:1] + value[-1:] in ("[]", "()") and ("'" in value or '"' in value)


# (fields that must be right, what to check then)
_CHECKS: tuple[tuple[tuple[str, ...], FindErrors], ...] = (
    (("model.",), _model),
    (("loss.", "model.initial_logit_bias", "data.num_nouns"), _loss),
    (
        ("loss.", "model.image.num_group_tokens", "optimizer.ema_decay", "data.noun_bank"),
        _methods,
    ),
    (("data.packed_length", "model.text.context_length"), _texts),
    (("data.augment.", "segmentation."), _ranges),
    (("train.batch_size", "train.micro_batch_size"), _batches),
    (("task", "data.sources"), _sources),
    (("checkpoint.best_metric", "evaluators"), _best_metric),
    (("wandb_project",), _wandb),
)
_PATHS: tuple[tuple[tuple[str, ...], FindErrors], ...] = (
    (("init_from", "image_init_from", "text_init_from"), _starting_points),
    (("data.tokenizer.",), _vocabulary),
)
