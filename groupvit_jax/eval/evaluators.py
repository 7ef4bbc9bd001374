"""Builds the evaluators of a configuration."""

import dataclasses
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from groupvit_jax.data.eval_sets import (
    Benchmark,
    ClassificationSet,
    ProbeSet,
    RetrievalSet,
    SegmentationSet,
    open_benchmark,
)
from groupvit_jax.data.sources.labelled import ImageFolder
from groupvit_jax.data.sources.masks import MaskedSource, TfdsMasks
from groupvit_jax.data.sources.pairs import make_source
from groupvit_jax.data.storage.cache import make_cache
from groupvit_jax.data.text.names import check_known
from groupvit_jax.data.text.tokenizers import Tokenizer
from groupvit_jax.eval.encoding import IMAGENET_PROMPTS, Encoder, ImageTower
from groupvit_jax.eval.head_segmentation import HeadSegmentation, HeadTower, head_protocol
from groupvit_jax.eval.probe import LinearProbe, NearestNeighbours, Probe
from groupvit_jax.eval.protocol import (
    CHOICES,
    PROTOCOLS,
    Protocol,
    checked_prompts,
    class_names,
    make_protocol,
)
from groupvit_jax.eval.segmentation_evaluator import Segmentation
from groupvit_jax.eval.zero_shot import Classification, Retrieval
from groupvit_jax.models.segmentation import SegmentationModel
from groupvit_jax.models.two_tower import TwoTower
from groupvit_jax.runs.bucket.fetching import local_copy
from groupvit_jax.runs.evaluator import Evaluator
from groupvit_jax.runs.rules import Rule, each, number, one_of, optional, text, whole
from groupvit_jax.runs.validation import Values, check_named

logger = logging.getLogger(__name__)

Model = TwoTower | SegmentationModel
# The kind of an evaluator that is left out.
OFF = "off"


def make_encoder(
    model: Model, tokenizer: Tokenizer, class_names: Sequence[str], mesh: Mesh
) -> Encoder | HeadTower:
    """Build the encoder that evaluators use, for a model of either task.

    Args:
      model: both towers, or the image tower with a segment head.
      tokenizer: of both towers.
      class_names: classes of the segment head.
      mesh: the devices.
    """
    if isinstance(model, SegmentationModel):
        return HeadTower(model, class_names, mesh)
    return Encoder(model, tokenizer, mesh)


def make_evaluators(
    config: ConfigDict, model: Model, tokenizer: Tokenizer, mesh: Mesh
) -> list[tuple[Evaluator, int]]:
    """Return each evaluator of `config.evaluators` with its interval in steps.

    Every entry has a `kind`, optionally `every_steps` (default 0: at the end only), and the fields
    of its kind. With a segment head, sets must have its classes, and settings of texts and
    background don't apply:

    - "benchmark": `benchmark` (by default the name of the entry), `data_dir` and the options of
      `evaluator_of`;
    - "retrieval": `source` (as in `config.data.sources`) and the options of `Retrieval`;
    - "classification": `folder` (see `ImageFolder`) and the options of `Classification`;
    - "segmentation": `source` (`name`, `split`, `data_dir` of a TFDS set), `classes`, `protocol`
      and its settings (`Protocol`), `windows_at_once` and `background_name`; with a segment head
      `source`, the settings and `windows_at_once`;
    - "linear_probe" and "knn": `benchmark` ("imagenet" or "image_folder") and
      `data_dir`, and the options of `LinearProbe` or `NearestNeighbours`;
    - "off": it is left out, whatever other fields it has.

    Raises:
      ValueError: a kind or field is unknown or a set can't be read; the message names the field.
      FileNotFoundError: files of a set are missing.
    """
    encoder = make_encoder(model, tokenizer, config.segmentation.class_names, mesh)
    kinds = _HEAD_KINDS if isinstance(encoder, HeadTower) else _KINDS
    cache = make_cache(config.data.cache_dir, config.data.cache_gib)
    evaluators = []
    for name, entry in config.evaluators.items():
        options = entry.to_dict()
        kind, every_steps = options.pop("kind", None), options.pop("every_steps", 0)
        if kind == OFF:
            logger.info("config.evaluators.%s is left out", name)
            continue
        if kind not in kinds:
            raise ValueError(
                f"config.evaluators.{name}.kind: {kind!r} found, expected one of {list(kinds)}"
            )
        if kind == "retrieval":
            options["open_source"] = partial(
                make_source, name, index_dir=config.data.index_dir, cache=cache
            )
        try:
            evaluators.append((kinds[kind](encoder, name, options), every_steps))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"config.evaluators.{name}: {error}; leave it out with "
                f"--config.evaluators.{name}.kind={OFF}"
            ) from error
        except (TypeError, ValueError) as error:  # or an unknown or missing argument
            raise ValueError(f"config.evaluators.{name}: {error}") from error
    return evaluators


def benchmark_evaluator(
    encoder: Encoder | HeadTower, benchmark: str, data_dir: str, **options: Any
) -> Segmentation | Classification | Retrieval | Probe:
    """Build the evaluator of one of the registered sets.

    Args:
      encoder: both towers, or an image tower with a segment head.
      benchmark: of `eval_sets.NAMES`.
      data_dir: see `eval_sets.open_benchmark`.
      **options: those of `evaluator_of`, with its errors.

    Raises:
      ValueError: the set is unknown.
      FileNotFoundError: files of the set are missing.
    """
    opened = open_benchmark(benchmark, local_copy(data_dir))
    return evaluator_of(encoder, opened, benchmark, **options)


def evaluator_of(
    encoder: Encoder | HeadTower,
    opened: Benchmark,
    benchmark: str,
    *,
    name: str = "",
    protocol: str = "groupvit",
    windows_at_once: int | None = None,
    batch_size: int = 256,
    **knobs: Any,
) -> Segmentation | Classification | Retrieval | Probe:
    """Build the evaluator of a set that is open.

    Args:
      encoder: both towers, or an image tower with a segment head.
      opened: the set.
      benchmark: what it is opened by.
      name: prefix of the metrics; the benchmark's by default.
      protocol: a key of `PROTOCOLS`, for segmentation.
      windows_at_once: see `WindowEncoder`, for segmentation.
      batch_size: images per batch, for classification and retrieval.
      **knobs: overrides of `Protocol` fields, for segmentation; `prompts` for classification too.

    Raises:
      ValueError: the protocol is unknown, a value is invalid, prompts are for a class that the set
        doesn't have, or the classes of a segment head differ from the set's.
      TypeError: an override is not a field of `Protocol`.
    """
    name = name or benchmark
    # Probes need an image tower only, which both encoders have.
    if isinstance(opened, ProbeSet):
        return _make_probe(encoder, opened, name=name, batch_size=batch_size)
    if isinstance(encoder, HeadTower):
        chosen = head_protocol(encoder.model.image_encoder.image_size, protocol=protocol, **knobs)
        source = _source_of_head(encoder, benchmark, opened)
        return HeadSegmentation(encoder, source, chosen, name=name, windows_at_once=windows_at_once)
    if isinstance(opened, RetrievalSet):
        return Retrieval(encoder, opened.source, name=name, batch_size=batch_size)
    if isinstance(opened, ClassificationSet):
        prompts = checked_prompts(knobs.get("prompts") or IMAGENET_PROMPTS, IMAGENET_PROMPTS)
        if isinstance(prompts, Mapping):
            check_known(filter(None, prompts), opened.class_names, f"prompts of {name}")
        options: Any = {"name": name, "batch_size": batch_size, "prompts": prompts}
        return Classification(encoder, opened.source, opened.class_names, **options)
    chosen = protocol_of_set(
        opened, protocol, benchmark, encoder.model.image_encoder.image_size, **knobs
    )
    names = class_names(protocol, benchmark, opened.class_names)
    check_known(dict(chosen.class_prompts), names, f"prompts of {name}")
    return Segmentation(
        encoder,
        opened.source,
        names,
        chosen,
        name=name,
        windows_at_once=windows_at_once,
    )


def protocol_of_set(
    opened: SegmentationSet, protocol: str, benchmark: str, image_size: int, **knobs: Any
) -> Protocol:
    """Return the protocol for a set, with what its own description says where no knob does."""
    own: dict[str, Any] = {"prompts": opened.prompts or None}
    if opened.has_background:
        own["background_threshold"] = opened.background_threshold
    given = {key: value for key, value in knobs.items() if value is not None}
    return make_protocol(
        protocol,
        benchmark,
        has_background=opened.has_background,
        image_size=image_size,
        **(own | given),
    )


def _source_of_head(encoder: HeadTower, benchmark: str, opened: Any) -> MaskedSource:
    """Return the source of a set whose classes equal the head's."""
    if not isinstance(opened, SegmentationSet):
        raise ValueError(
            f"{benchmark}: a set without masks found, expected one to segment: this model has a "
            "segment head and no text tower"
        )
    try:
        opened.check_names(encoder.class_names, "the segment head")
    except ValueError as error:
        raise ValueError(f"{benchmark}: {error}") from error
    return opened.source


def _benchmark(encoder: Encoder | HeadTower, name: str, options: dict[str, Any]) -> Evaluator:
    return benchmark_evaluator(
        encoder, options.pop("benchmark", name), options.pop("data_dir", "."), name=name, **options
    )


def _retrieval(encoder: Encoder, name: str, options: dict[str, Any]) -> Evaluator:
    source = options.pop("open_source")(options.pop("source", {}))
    return Retrieval(encoder, source, name=name, **options)


def _classification(encoder: Encoder, name: str, options: dict[str, Any]) -> Evaluator:
    images = ImageFolder(options.pop("folder", ""))
    return Classification(encoder, images, images.class_names, name=name, **options)


def _segmentation(encoder: Encoder, name: str, options: dict[str, Any]) -> Evaluator:
    source = TfdsMasks(**options.pop("source", {}))
    classes = options.pop("classes", ())
    rest = {key: options.pop(key) for key in _SEGMENTATION_OPTIONS if key in options}
    has_background = options.get("background_threshold") is not None
    protocol = make_protocol(
        options.pop("protocol", "groupvit"), has_background=has_background, **options
    )
    return Segmentation(encoder, source, classes, protocol, name=name, **rest)


def _head_segmentation(encoder: HeadTower, name: str, options: dict[str, Any]) -> Evaluator:
    source = TfdsMasks(**options.pop("source", {}))
    windows_at_once = options.pop("windows_at_once", None)
    protocol = head_protocol(encoder.model.image_encoder.image_size, **options)
    return HeadSegmentation(encoder, source, protocol, name=name, windows_at_once=windows_at_once)


def _probe(kind: str, encoder: ImageTower, name: str, options: dict[str, Any]) -> Evaluator:
    benchmark, data_dir = options.pop("benchmark", name), options.pop("data_dir", ".")
    opened = open_benchmark(f"{benchmark}_{kind}", local_copy(data_dir))
    assert isinstance(opened, ProbeSet)
    return _make_probe(encoder, opened, name=name, **options)


def _make_probe(encoder: ImageTower, opened: ProbeSet, **options: Any) -> Probe:
    num_classes = len(opened.class_names)
    return _PROBES[opened.probe](encoder, opened.train, opened.source, num_classes, **options)


_PROBES: Mapping[str, type[Probe]] = {"linear_probe": LinearProbe, "knn": NearestNeighbours}
_PROBE_KINDS = {kind: partial(_probe, kind) for kind in _PROBES}
_SEGMENTATION_OPTIONS = ("windows_at_once", "background_name")
_KINDS: Mapping[str, Callable[[Any, str, dict[str, Any]], Evaluator]] = {
    "benchmark": _benchmark,
    "retrieval": _retrieval,
    "classification": _classification,
    "segmentation": _segmentation,
    **_PROBE_KINDS,
}
_HEAD_KINDS: Mapping[str, Callable[[Any, str, dict[str, Any]], Evaluator]] = {
    "benchmark": _benchmark,
    "segmentation": _head_segmentation,
    **_PROBE_KINDS,
}


def _options_of(*functions: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of keyword-only arguments, without `name`, which the entry's key gives."""
    return tuple(
        name
        for function in functions
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name != "name"
    )


_KNOBS = tuple(field.name for field in dataclasses.fields(Protocol))
_SET = ("every_steps", "benchmark", "data_dir")
# Fields of `config.evaluators.NAME` by its kind, as the evaluators themselves name their options.
FIELDS: Mapping[str, tuple[str, ...]] = {
    OFF: ("every_steps",),
    "benchmark": (*_SET, *_options_of(evaluator_of), *_KNOBS),
    "retrieval": ("every_steps", "source", *_options_of(Retrieval)),
    "classification": ("every_steps", "folder", *_options_of(Classification)),
    "segmentation": (
        *("every_steps", "source", "classes", "protocol"), *_SEGMENTATION_OPTIONS, *_KNOBS
    ),
    **{kind: (*_SET, *_options_of(Probe, probe)) for kind, probe in _PROBES.items()},
}  # fmt: skip
_TEXTS = each("texts", text())
_RULES: Mapping[str, Rule] = {
    "every_steps": whole(0),
    "benchmark": text(),
    "data_dir": text(),
    "folder": text(),
    "classes": _TEXTS,
    "prompts": _TEXTS,
    "protocol": one_of(PROTOCOLS),
    **{name: one_of(choices) for name, choices in CHOICES.items()},
    "background_threshold": optional(number()),
    "background_name": text(),
    "batch_size": whole(1),
    "windows_at_once": optional(whole(1)),
    "window": whole(1),
    "stride": whole(1),
    "num_kept": whole(1),
    "pamr_iterations": whole(0),
    "captions_per_image": whole(1),
    "k": whole(1),
    "max_iterations": whole(1),
    "strengths": each("numbers over 0", number(over=0.0)),
}


def find_evaluator_errors(values: Values) -> list[str]:
    """Return a line for every error of `config.evaluators`; the sets are not opened.

    Args:
      values: the configuration's, as `runs.validation` hands them in.
    """
    kinds = FIELDS
    if values["task"] == "segmentation":
        kinds = {kind: names for kind, names in FIELDS.items() if kind in (OFF, *_HEAD_KINDS)}
    errors: list[str] = []
    for name, entry in values["evaluators"].items():
        field = f"evaluators.{name}"
        if isinstance(entry, Mapping) and entry.get("kind") == OFF:
            continue  # whatever it had before it was switched off
        errors += check_named(field, entry, kinds, _RULES)
    return errors
