r"""Evaluates a checkpoint of any kind, or any other model's masks, on the sets of the field.

python -m launch.evaluate --checkpoint=runs/first --benchmarks=voc,context,imagenet \
    --data_dir=data --output=evaluation
python -m launch.evaluate --checkpoint=gcc_yfcc.pth --benchmarks=voc,ade20k=ADEChallengeData2016 \
    --data_dir=data --protocol=tcl --pamr_iterations=10 --output=evaluation
python -m launch.evaluate --checkpoint=runs/first --benchmarks=folder=mine,folder=sets/b.toml \
    --background_threshold=0.3,0.4,0.5 --output=evaluation
python -m launch.evaluate --predictions=masks --benchmarks=voc --data_dir=data --output=theirs

docs/evaluate.md says how to evaluate a set of one's own, docs/benchmarks.md how each set lies on
the disk. Leaves OUTPUT/results.json (with protocol, checkpoint, versions and each class),
results.md and report.html. Each set, threshold and list of prompts is a row. What was measured
already with the same weights, set (by a fingerprint of its files), settings and version is not
measured again.

Exit codes: 0 done; 1 a set could not be evaluated, or not all of its images, the others are done; 2
something is wrong with flags or files.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags

from groupvit_jax import parallel
from groupvit_jax.data.eval_sets import (
    NAMES,
    ClassificationSet,
    SegmentationSet,
    open_benchmark,
)
from groupvit_jax.data.sources.fingerprint import fingerprint_of_files
from groupvit_jax.data.storage.objects import is_remote
from groupvit_jax.data.text.names import check_known, key_of, keys_of
from groupvit_jax.data.text.prompt_files import read_prompts
from groupvit_jax.data.text.tokenizers import make_tokenizer
from groupvit_jax.eval import results
from groupvit_jax.eval.evaluators import evaluator_of, make_encoder, protocol_of_set
from groupvit_jax.eval.predictions import PredictedMasks, predictions_of
from groupvit_jax.eval.protocol import CHOICES, PROTOCOLS, class_names
from groupvit_jax.eval.saving import KINDS, check_kinds
from groupvit_jax.interop import load_pretrained
from groupvit_jax.interop.pretrained import Pretrained
from groupvit_jax.runs.bucket.fetching import local_copy
from groupvit_jax.runs.bucket.outputs import output_folder
from launch import common
from launch.evaluation import Evaluation, Measurement, OpenSet, say

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "", "A run's folder or a step, an export, a Hugging Face directory or a .pth."
)
_BENCHMARKS = flags.DEFINE_list(
    "benchmarks", [], f"Each NAME or NAME=FOLDER, with commas between; of {', '.join(NAMES)}."
)
_DATA_DIR = flags.DEFINE_string("data_dir", "data", "The folder that the sets lie in.")
_OUTPUT = flags.DEFINE_string("output", "", "Folder to write into, or a URL.")
_PROTOCOL = flags.DEFINE_enum("protocol", "groupvit", list(PROTOCOLS), "Of segmentation.")
_EXAMPLES = flags.DEFINE_integer("examples", 8, "Pictures of a set in the report.", lower_bound=0)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 256, "Images at once in classification and retrieval.", lower_bound=1
)
_WINDOWS = flags.DEFINE_integer(
    "windows_at_once", None, "Windows at once in segmentation.", lower_bound=1
)
_PREDICTIONS = flags.DEFINE_string(
    "predictions", "", "In place of a checkpoint: folder of another model's masks, class numbers."
)
_SAVE = flags.DEFINE_list("save", [], f"Predictions to write: some of {', '.join(KINDS)}.")
_THRESHOLDS = flags.DEFINE_list(
    "background_threshold",
    [],
    "What a class has to score, 0 to 1; several are a sweep; SET=0.4 for one set.",
)
_PROMPTS = flags.DEFINE_list(
    "prompts", [], "Texts with {} for a class's name, or @FILE with one a line or some by class."
)
# The knobs of the protocol; without a value they are as the protocol has them.
_KNOBS: dict[str, flags.FlagHolder] = {
    holder.name: holder
    for holder in (
        flags.DEFINE_integer("window", None, "Side of the sliding windows."),
        flags.DEFINE_integer("stride", None, "Pixels between windows."),
        flags.DEFINE_integer("num_kept", None, "Classes that a window may show."),
        flags.DEFINE_integer("pamr_iterations", None, "Refinement by the image; 0 for none."),
        flags.DEFINE_list("pamr_dilations", None, "Distances of the neighbours that refine."),
        flags.DEFINE_list("resize", None, "Longest and shortest side of the images."),
        *(
            flags.DEFINE_enum(name, None, choices, "See eval/protocol.py.")
            for name, choices in CHOICES.items()
        ),
    )
}
common.define_process_flags()


def main(argv: list[str]) -> int:
    """Run the command; return its exit code."""
    del argv
    common.name_steps()
    with common.bad_input_ends(TypeError):
        return _run()


def _run() -> int:
    for flag in (_BENCHMARKS, _OUTPUT):
        if not flag.value:
            raise ValueError(f"--{flag.name}: missing")
    save = check_kinds(_SAVE.value)
    if save and _PREDICTIONS.value:
        raise ValueError("--save: predictions on the disk found, expected --checkpoint with it")
    if bool(_CHECKPOINT.value) == bool(_PREDICTIONS.value):
        raise ValueError("--checkpoint: expected either this or --predictions")
    common.start_jax()
    # All are opened before the first is measured.
    if _PREDICTIONS.value:
        opened = [_open(entry) for entry in _BENCHMARKS.value]
        variables, checkpoint, groups = None, *_of_predictions(opened)
    else:
        pretrained = load_pretrained(_CHECKPOINT.value)
        pretrained.check_finite()
        opened = [_open(entry) for entry in _BENCHMARKS.value]
        groups = _evaluators(pretrained, opened)
        checkpoint = {
            "path": _CHECKPOINT.value,
            "sha256": results.hash_variables(pretrained.variables),
        }
        variables = pretrained.variables
    with output_folder(_OUTPUT.value) as output:
        output.mkdir(parents=True, exist_ok=True)
        evaluation = Evaluation(output, checkpoint, _PROTOCOL.value, _EXAMPLES.value, save)
        code = evaluation.run(groups, variables and jax.device_put(variables, _replicated()))
    say(f"Report: {_OUTPUT.value.rstrip('/')}/report.html")
    return code


def _replicated() -> Any:
    return parallel.replicated(parallel.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}))


def _open(entry: str) -> OpenSet:
    """Open NAME or NAME=FOLDER, and say what was found."""
    name, _, folder = entry.strip().partition("=")
    given = folder or _DATA_DIR.value
    place = local_copy(given).expanduser()
    opened = open_benchmark(name, place)
    own = getattr(opened, "name", "") or (place.stem if folder and name == "folder" else "")
    say(getattr(opened, "summary", "") or f"{name}: {len(opened.source)} images")
    return OpenSet(name, own or name, given if is_remote(given) else str(place.resolve()), opened)


def _evaluators(pretrained: Pretrained, opened: Sequence[OpenSet]) -> list[Measurement]:
    """Return what is measured of each set: an evaluator for each background threshold."""
    config = pretrained.model_config
    mesh = parallel.make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
    tokenizer = make_tokenizer(pretrained.tokenizer, config.text.context_length)
    encoder = make_encoder(pretrained.build_model(), tokenizer, pretrained.class_names, mesh)
    knobs = {key: holder.value for key, holder in _KNOBS.items()}
    for key in ("resize", "pamr_dilations"):
        knobs[key] = knobs[key] and _integers(key, knobs[key])
    prompts = _prompts(opened) if _PROMPTS.value else None
    common_thresholds, by_set = _thresholds(opened)
    measurements = []
    for each in opened:
        knobs["prompts"] = _of_set(prompts, each)
        thresholds = by_set.get(each.label, by_set.get(each.name, common_thresholds))
        has_background = getattr(each.opened, "has_background", False)
        if thresholds and not has_background:
            say(f"{each.label}: without background; --background_threshold doesn't apply")
            thresholds = ()
        evaluator = evaluator_of(
            encoder,
            each.opened,
            each.name,
            name=each.label,
            protocol=_PROTOCOL.value,
            windows_at_once=_WINDOWS.value,
            batch_size=_BATCH_SIZE.value,
            background_threshold=thresholds[0] if thresholds else None,
            **knobs,
        )
        several = [evaluator.with_threshold(t) for t in thresholds[1:]]  # type: ignore[union-attr]
        usual = None
        if isinstance(each.opened, SegmentationSet) and not pretrained.class_names:
            usual = protocol_of_set(
                each.opened, _PROTOCOL.value, each.name, config.image.image_size
            )
        measurements.append(Measurement(each, [evaluator, *several], usual))
    return measurements


def _of_predictions(opened: Sequence[OpenSet]) -> tuple[dict[str, str], list[Measurement]]:
    """Return what stands for the checkpoint, and the measurements of masks on the disk."""
    folder, files, measurements = Path(_PREDICTIONS.value).expanduser(), [], []
    for each in opened:
        own = folder / each.label
        if not isinstance(each.opened, SegmentationSet):
            raise ValueError(f"{each.label}: a set without masks found, expected one to segment")
        masks = PredictedMasks(own if own.is_dir() else folder, each.opened.source)
        files += masks.files()
        evaluator = predictions_of(each.opened, each.name, masks, _PROTOCOL.value)
        evaluator.name = each.label
        measurements.append(Measurement(each, [evaluator], None))
    return {"path": str(folder), "sha256": fingerprint_of_files(files)}, measurements


def _thresholds(
    opened: Sequence[OpenSet],
) -> tuple[tuple[float, ...], dict[str, tuple[float, ...]]]:
    """Return the background thresholds for all sets, and those of single sets by name."""
    by_set: dict[str, tuple[float, ...]] = {}
    for item in _THRESHOLDS.value:
        name, _, text = item.strip().rpartition("=")
        try:
            value = float(text)
        except ValueError:
            value = -1.0  # refused below
        if not 0 <= value <= 1:
            raise ValueError(f"--background_threshold={item}: expected numbers from 0 to 1")
        known = {"", *(each.label for each in opened), *(each.name for each in opened)}
        if name not in known:
            raise ValueError(f"--background_threshold={item}: {name!r} is none of --benchmarks")
        by_set[name] = tuple(dict.fromkeys((*by_set.get(name, ()), value)))
    return by_set.pop("", ()), by_set


def _prompts(opened: Sequence[OpenSet]) -> Sequence[str] | Mapping[str, Sequence[str]]:
    """Return the texts of the flag or its file; a class must be one of some set."""
    given = _PROMPTS.value
    if not given[0].startswith("@"):
        return given
    found = read_prompts(Path(given[0][1:]).expanduser())
    if isinstance(found, Mapping):
        names = [name for each in opened for name in _compared(each)]
        check_known(filter(None, found), names, f"--prompts={given[0]}")
    return found


def _of_set(
    prompts: Sequence[str] | Mapping[str, Sequence[str]] | None, each: OpenSet
) -> Sequence[str] | Mapping[str, Sequence[str]] | None:
    """Return the prompts that a set's classes have; None for the protocol's."""
    if prompts is None:
        return None
    if not (names := _compared(each)):
        say(f"{each.label}: no class names are compared; --prompts doesn't apply")
        return None
    if not isinstance(prompts, Mapping):
        return prompts
    keys = keys_of(names)
    return {k: v for k, v in prompts.items() if not k or key_of(k) in keys} or None


def _compared(each: OpenSet) -> Sequence[str]:
    """Return the class names that images are compared with; none for captions and probes."""
    if isinstance(each.opened, ClassificationSet):
        return each.opened.class_names
    if isinstance(each.opened, SegmentationSet):
        return class_names(_PROTOCOL.value, each.name, each.opened.class_names)
    return ()


def _integers(flag: str, values: Sequence[str]) -> tuple[int, ...]:
    if not all(value.strip().isdigit() for value in values):
        raise ValueError(f"--{flag}={','.join(values)}: expected integers with commas between")
    return tuple(int(value) for value in values)


if __name__ == "__main__":
    common.use_all_cores()
    common.keep_compiled_programs()
    app.run(main, flags_parser=common.parse_flags)
