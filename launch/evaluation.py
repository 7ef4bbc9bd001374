"""Measures open sets one after another, for `launch.evaluate`."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from groupvit_jax.data.eval_sets import Benchmark
from groupvit_jax.data.sources.fingerprint import fingerprint
from groupvit_jax.eval import evaluation_report, results
from groupvit_jax.eval.head_segmentation import HeadSegmentation
from groupvit_jax.eval.predictions import Predictions, photo_names
from groupvit_jax.eval.protocol import Protocol
from groupvit_jax.eval.result_store import ResultStore, code_version
from groupvit_jax.eval.saving import PredictionFiles
from groupvit_jax.eval.segmentation_evaluator import Segmentation
from groupvit_jax.eval.zero_shot import Classification
from groupvit_jax.runs import exit_codes
from groupvit_jax.runs.starts import environment
from groupvit_jax.typing import Params

PREDICTIONS = "predictions"  # in place of a protocol's name


class OpenSet(NamedTuple):
    """A set that is open.

    Attributes:
      name: what it is opened by.
      label: what results call it.
      path: where it lies.
      opened: the set.
    """

    name: str
    label: str
    path: str
    opened: Benchmark


class Measurement(NamedTuple):
    """What is measured of a set.

    Attributes:
      of: the set.
      evaluators: one, or one for each background threshold, which share all else.
      usual: the protocol without flags, for what the table says about settings.
    """

    of: OpenSet
    evaluators: Sequence[Any]
    usual: Protocol | None


class Evaluation:
    """Measures sets and keeps each result as soon as there is one."""

    def __init__(
        self,
        output: Path,
        checkpoint: dict[str, str],
        protocol: str,
        num_examples: int,
        save: Sequence[str] = (),
    ) -> None:
        """Read what was measured there before.

        Args:
          output: folder of the results.
          checkpoint: its path and hash.
          protocol: name of the protocol.
          num_examples: pictures of each set in the report.
          save: kinds of predictions to write, of `saving.KINDS`.

        Raises:
          ValueError: the folder's results can't be read.
        """
        self._output, self._protocol, self._num_examples = output, protocol, num_examples
        self._save = tuple(save)
        self._store = ResultStore(output, checkpoint, environment())
        self._examples: dict[str, list[evaluation_report.Example]] = {}
        self._incomplete = False
        if self._store.set_aside:
            say(f"results of other weights were moved to {self._store.set_aside}")

    def run(self, measurements: Sequence[Measurement], variables: Params) -> int:
        """Measure; return the exit code."""
        for each in measurements:
            try:
                self._measure(each, variables)
            except (ValueError, FileNotFoundError) as error:  # in this set's files
                self._incomplete = True
                say(f"error: {each.of.label}: {error}")
            else:
                self._write()
        say(results.markdown(self._store.content))
        return exit_codes.FAILED if self._incomplete else 0

    def _measure(self, measurement: Measurement, variables: Params) -> None:
        of, source = measurement.of, measurement.of.opened.source
        found = {"name": of.name, "path": of.path, "images": len(source)}
        identity = {"set": found | {"fingerprint": fingerprint(source)}, "version": code_version()}
        waiting: list[tuple[str, Any, dict[str, Any]]] = []
        rows: list[tuple[str, Any]] = []
        for evaluator in measurement.evaluators:
            of_row = identity | {"settings": _settings(evaluator)}
            row, before = self._store.row_of(of.label, of_row)
            rows.append((row, evaluator))
            # Predictions are not among the kept results: they need the model again.
            if before and not self._save:
                say(
                    f"{row}: measured before, {before['measured']}, with the same weights, set, "
                    "settings and version"
                )
                continue
            # Kept at once, so that the next threshold gets a row of its own.
            changed = self._changed(evaluator, measurement.usual)
            self._store.reserve(row, of_row | changed)
            waiting.append((row, evaluator, of_row | changed))
        for row in self._store.dropped:
            say(f"{row}: its earlier result is dropped, the set's files have changed")
        self._store.dropped.clear()
        try:
            self._measure_rows(waiting, variables, len(source))
        finally:
            self._store.release()
        self._take_examples(rows, variables)

    def _measure_rows(
        self, waiting: Sequence[tuple[str, Any, dict[str, Any]]], variables: Params, images: int
    ) -> None:
        if not waiting:
            return
        start = time.monotonic()
        if self._save:
            found = [self._saved(row, evaluator, variables) for row, evaluator, _ in waiting]
        else:
            found = _metrics([evaluator for _, evaluator, _ in waiting], variables)
        # All thresholds share one pass over the images.
        seconds = round((time.monotonic() - start) / len(waiting), 1)
        for (row, evaluator, entry), metrics in zip(waiting, found, strict=True):
            read = int(metrics.pop("images", 0)) or images
            if read < images:
                self._incomplete = True
                say(f"error: {row}: {images - read} of {images} images can't be read")
            classes = {key[4:]: value for key, value in metrics.items() if key.startswith("iou/")}
            result = {
                "metrics": {k: v for k, v in metrics.items() if not k.startswith("iou/")},
                "classes": classes,
                "images": read,
                "protocol": self._protocol_of(evaluator),
                "seconds": seconds,
            }
            self._store.keep(row, entry | result)

    def _saved(self, row: str, evaluator: Any, variables: Params) -> dict[str, float]:
        """Measure, and write the predictions into a folder called after the row."""
        if not isinstance(evaluator, Segmentation):
            return _metrics([evaluator], variables)[0]
        folder = self._output / row
        labels, names = evaluator.all_names, photo_names(evaluator.source)
        files = PredictionFiles(folder, self._save, labels, evaluator.has_background)
        with _bar(evaluator) as show:
            confusion = evaluator.saved(
                variables,
                lambda index, image, found: files(names[index], image, found),
                groups=files.needs_groups,
                progress=show,
            )
        files.finish()
        say(f"{row}: {', '.join(self._save)} of {len(names)} photos are in {folder}")
        return evaluator.scores(confusion)

    def _take_examples(self, rows: Sequence[tuple[str, Any]], variables: Params) -> None:
        """Take pictures with the best of several thresholds."""
        benchmarks = self._store.content["benchmarks"]
        shown = [(row, each) for row, each in rows if hasattr(each, "examples")]
        if shown and self._num_examples:
            row, evaluator = max(shown, key=lambda pair: benchmarks[pair[0]]["metrics"]["miou"])
            self._examples[row] = evaluator.examples(variables, self._num_examples)

    def _changed(self, evaluator: Any, usual: Protocol | None) -> dict[str, Any]:
        if usual is None or not isinstance(evaluator, Segmentation):
            return {}
        return {"changed": results.changed_settings(evaluator.protocol, usual)}

    def _protocol_of(self, evaluator: Any) -> str:
        """Return the name of how images are segmented, where they are."""
        if isinstance(evaluator, Predictions):
            return PREDICTIONS
        if isinstance(evaluator, HeadSegmentation):
            return results.SEGMENT_HEAD
        return self._protocol if isinstance(evaluator, Segmentation) else ""

    def _write(self) -> None:
        if jax.process_index():
            return
        self._store.write()
        found = self._store.content
        header, rows = results.table(found["benchmarks"])
        classes = {name: entry["classes"] for name, entry in found["benchmarks"].items()}
        versions = found["environment"]["versions"]
        evaluation_report.write_report(
            self._output / "report.html",
            f"Evaluation of {found['checkpoint']['path']}",
            header=header,
            rows=rows,
            facts={
                "parameters, SHA-256": found["checkpoint"]["sha256"],
                "devices": found["environment"]["devices"],
                "versions": ", ".join(f"{k} {v}" for k, v in versions.items()),
            },
            class_iou={name: values for name, values in classes.items() if values},
            examples=self._examples,
            curves=results.curves(found["benchmarks"]),
            remarks=results.remarks(found["benchmarks"]),
        )


def say(text: str) -> None:
    """Print from the first process only; every process has the same to say."""
    if jax.process_index() == 0:
        print(text, flush=True)


def _settings(evaluator: Any) -> dict[str, Any]:
    """Return what a result depends on beside weights and set, as JSON has it."""
    settings: dict[str, Any] = {}
    if isinstance(evaluator, Segmentation):
        settings["protocol"] = dataclasses.asdict(evaluator.protocol)
        # The background, where there is one, comes first.
        behind = len(evaluator.all_names) - len(evaluator.class_names)
        settings["classes"] = [*evaluator.all_names[:behind], *evaluator.class_names]
    if isinstance(evaluator, Predictions):
        settings["classes"] = evaluator.all_names
    if isinstance(evaluator, Classification):
        settings |= {"classes": evaluator.class_names, "prompts": evaluator.prompts}
    # Tuples become lists, as in the kept results that these are compared with.
    return json.loads(json.dumps(settings))


@contextlib.contextmanager
def _bar(evaluator: Any) -> Iterator[Callable[[int], None]]:
    """Show a bar of this process's images on a terminal."""
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn(evaluator.name))
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        # Processes take the images in turn.
        mine = len(range(jax.process_index(), len(evaluator.source), jax.process_count()))
        task = progress.add_task("", total=mine)
        yield lambda done: progress.update(task, completed=done)


def _metrics(evaluators: Sequence[Any], variables: Params) -> list[dict[str, float]]:
    """Measure; shows a bar where the images of a segmentation are counted."""
    first = evaluators[0]
    if not isinstance(first, Segmentation | Predictions):
        return [first(variables)]
    with _bar(first) as show:
        if isinstance(first, Predictions):
            return [first.scores(first.confusion(show))]
        thresholds = [each.protocol.background_threshold for each in evaluators]
        found = first.sweep(variables, thresholds, show)
    return [each.scores(counts) for each, counts in zip(evaluators, found, strict=True)]
