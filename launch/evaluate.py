r"""Evaluates a checkpoint of any kind on the sets of the field: zero-shot, or its segment head.

python -m launch.evaluate --checkpoint=runs/first --benchmarks=voc,context,imagenet \
    --data_dir=data --output=evaluation
python -m launch.evaluate --checkpoint=gcc_yfcc.pth --benchmarks=voc,ade20k=ADEChallengeData2016 \
    --data_dir=data --protocol=tcl --pamr_iterations=10 --output=evaluation

docs/benchmarks.md says how each set lies on the disk. Leaves OUTPUT/results.json (with protocol,
checkpoint, versions and each class), results.md and report.html. What was measured already with the
same checkpoint and settings is not measured again.

Exit codes: 0 done; 1 a set could not be evaluated, the others are done; 2 something is wrong with
flags or files.
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from groupvit_jax import parallel
from groupvit_jax.data.eval_sets import NAMES, open_benchmark
from groupvit_jax.data.text.tokenizers import make_tokenizer
from groupvit_jax.eval import evaluation_report, results
from groupvit_jax.eval.encoding import Encoder
from groupvit_jax.eval.evaluators import evaluator_of, make_encoder
from groupvit_jax.eval.head_segmentation import HeadSegmentation, HeadTower
from groupvit_jax.eval.protocol import CHOICES, PROTOCOLS
from groupvit_jax.eval.segmentation_evaluator import Segmentation
from groupvit_jax.eval.zero_shot import Classification
from groupvit_jax.interop import load_pretrained
from groupvit_jax.runs import exit_codes
from groupvit_jax.runs.starts import environment
from groupvit_jax.typing import Params
from launch import common

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "", "A run's folder or a step, an export, a Hugging Face directory or a .pth."
)
_BENCHMARKS = flags.DEFINE_list(
    "benchmarks", [], f"Each NAME or NAME=FOLDER, with commas between; of {', '.join(NAMES)}."
)
_DATA_DIR = flags.DEFINE_string("data_dir", "data", "The folder that the sets lie in.")
_OUTPUT = flags.DEFINE_string("output", "", "Folder to write into.")
_PROTOCOL = flags.DEFINE_enum("protocol", "groupvit", list(PROTOCOLS), "Of segmentation.")
_EXAMPLES = flags.DEFINE_integer("examples", 8, "Pictures of a set in the report.", lower_bound=0)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 256, "Images at once in classification and retrieval.", lower_bound=1
)
_WINDOWS = flags.DEFINE_integer(
    "windows_at_once", None, "Windows at once in segmentation.", lower_bound=1
)
# The knobs of the protocol; without a value they are as the protocol has them.
_KNOBS: dict[str, flags.FlagHolder] = {
    holder.name: holder
    for holder in (
        flags.DEFINE_integer("window", None, "Side of the sliding windows."),
        flags.DEFINE_integer("stride", None, "Pixels between windows."),
        flags.DEFINE_integer("num_kept", None, "Classes that a window may show."),
        flags.DEFINE_float("background_threshold", None, "What a class has to score, 0 to 1."),
        flags.DEFINE_integer("pamr_iterations", None, "Refinement by the image; 0 for none."),
        flags.DEFINE_list("pamr_dilations", None, "Distances of the neighbours that refine."),
        flags.DEFINE_list("resize", None, "Longest and shortest side of the images."),
        flags.DEFINE_list("prompts", None, "Texts with {} for a class's name."),
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
    try:
        return _run()
    except (ValueError, TypeError, FileNotFoundError) as error:
        if not common.is_user_error(error):
            raise
        common.fail(exit_codes.BAD_INPUT, error)


def _run() -> int:
    for flag in (_CHECKPOINT, _BENCHMARKS, _OUTPUT):
        if not flag.value:
            raise ValueError(f"--{flag.name}: missing")
    common.start_jax()
    pretrained = load_pretrained(_CHECKPOINT.value)
    mesh = parallel.make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
    config = pretrained.model_config
    tokenizer = make_tokenizer(pretrained.tokenizer, config.text.context_length)
    encoder = make_encoder(pretrained.build_model(), tokenizer, pretrained.class_names, mesh)
    # All are opened before the first is measured.
    evaluators = [_open(encoder, entry) for entry in _BENCHMARKS.value]
    checkpoint = {
        "path": _CHECKPOINT.value,
        "sha256": results.hash_variables(pretrained.variables),
    }
    variables = jax.device_put(pretrained.variables, parallel.replicated(mesh))
    output = Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    return Evaluation(output, checkpoint).run(evaluators, variables)


def _open(encoder: Encoder | HeadTower, entry: str) -> Any:
    """Return the evaluator of NAME or NAME=FOLDER."""
    name, _, folder = entry.strip().partition("=")
    knobs = {key: holder.value for key, holder in _KNOBS.items()}
    for key in ("resize", "pamr_dilations"):
        knobs[key] = knobs[key] and _integers(key, knobs[key])
    opened = open_benchmark(name, folder or _DATA_DIR.value)
    _say(getattr(opened, "summary", "") or f"{name}: {len(opened.source)} images")
    return evaluator_of(
        encoder,
        opened,
        name,
        protocol=_PROTOCOL.value,
        windows_at_once=_WINDOWS.value,
        batch_size=_BATCH_SIZE.value,
        **knobs,
    )


def _integers(flag: str, values: Sequence[str]) -> tuple[int, ...]:
    if not all(value.strip().isdigit() for value in values):
        raise ValueError(f"--{flag}={','.join(values)}: expected integers with commas between")
    return tuple(int(value) for value in values)


class Evaluation:
    """Measures sets one after another and keeps each result as soon as there is one."""

    def __init__(self, output: Path, checkpoint: dict[str, str]) -> None:
        """Read what was measured there before.

        Raises:
          ValueError: the folder's results can't be read.
        """
        self._output = output
        before = results.read(output / "results.json")
        same = before.get("checkpoint", {}).get("sha256") == checkpoint["sha256"]
        self._results: dict[str, Any] = {
            "checkpoint": checkpoint,
            "environment": environment(),
            "benchmarks": before["benchmarks"] if same else {},
        }
        self._examples: dict[str, list[evaluation_report.Example]] = {}

    def run(self, evaluators: Sequence[Any], variables: Params) -> int:
        """Measures; return the exit code."""
        failed = []
        for evaluator in evaluators:
            try:
                self._measure(evaluator, variables)
            except (ValueError, FileNotFoundError) as error:  # in this set's files
                failed.append(evaluator.name)
                _say(f"error: {evaluator.name}: {error}")
            else:
                self._write()
        _say(results.markdown(self._results))
        _say(f"Report: {self._output / 'report.html'}")
        return exit_codes.FAILED if failed else 0

    def _measure(self, evaluator: Any, variables: Params) -> None:
        name, settings = evaluator.name, _settings(evaluator)
        before = self._results["benchmarks"].get(name, {})
        if before.get("settings") == settings:
            _say(f"{name}: measured before with the same settings")
        else:
            start = time.monotonic()
            metrics = _metrics(evaluator, variables)
            classes = {key[4:]: value for key, value in metrics.items() if key.startswith("iou/")}
            images = int(metrics.pop("images", 0)) or len(evaluator.source)
            self._results["benchmarks"][name] = {
                "metrics": {k: v for k, v in metrics.items() if not k.startswith("iou/")},
                "classes": classes,
                "images": images,
                "protocol": _protocol_of(evaluator),
                "settings": settings,
                "seconds": round(time.monotonic() - start, 1),
            }
        if isinstance(evaluator, Segmentation) and _EXAMPLES.value:
            self._examples[name] = evaluator.examples(variables, _EXAMPLES.value)

    def _write(self) -> None:
        if jax.process_index():
            return
        found, environment = self._results, self._results["environment"]
        results.write(self._output / "results.json", json.dumps(found, indent=2) + "\n")
        results.write(self._output / "results.md", results.markdown(found))
        header, rows = results.table(found["benchmarks"])
        classes = {name: entry["classes"] for name, entry in found["benchmarks"].items()}
        evaluation_report.write_report(
            self._output / "report.html",
            f"Evaluation of {found['checkpoint']['path']}",
            header=header,
            rows=rows,
            facts={
                "parameters, SHA-256": found["checkpoint"]["sha256"],
                "devices": environment["devices"],
                "versions": ", ".join(f"{k} {v}" for k, v in environment["versions"].items()),
            },
            class_iou={name: values for name, values in classes.items() if values},
            examples=self._examples,
        )


def _say(text: str) -> None:
    """Print on one of the processes."""
    if jax.process_index() == 0:
        print(text, flush=True)


def _protocol_of(evaluator: Any) -> str:
    """Return the name of how images are segmented, where they are."""
    if isinstance(evaluator, HeadSegmentation):
        return results.SEGMENT_HEAD
    return _PROTOCOL.value if isinstance(evaluator, Segmentation) else ""


def _settings(evaluator: Any) -> dict[str, Any]:
    """Return what a result depends on beside the checkpoint, as JSON has it."""
    source = evaluator.source
    settings: dict[str, Any] = {"images": len(source), "first": source.locate(0)}
    if isinstance(evaluator, Segmentation):
        settings["protocol"] = dataclasses.asdict(evaluator.protocol)
        settings["classes"] = evaluator.all_names
    if isinstance(evaluator, Classification):
        settings |= {"classes": evaluator.class_names, "prompts": evaluator.prompts}
    return json.loads(json.dumps(settings))


def _metrics(evaluator: Any, variables: Params) -> dict[str, float]:
    """Measures; shows a bar where the images of a segmentation are counted."""
    if not isinstance(evaluator, Segmentation):
        return evaluator(variables)
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn(evaluator.name))
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        mine = len(range(jax.process_index(), len(evaluator.source), jax.process_count()))
        task = progress.add_task("", total=mine)
        confusion = evaluator.confusion(
            variables, lambda done: progress.update(task, completed=done)
        )
    return evaluator.scores(confusion)


if __name__ == "__main__":
    common.use_all_cores()
    app.run(main, flags_parser=common.parse_flags)
