"""Results of an evaluation as JSON and Markdown, with the settings that produced them."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from groupvit_jax.report.markdown import markdown_table
from groupvit_jax.typing import Params

# In place of a protocol's name.
SEGMENT_HEAD = "segment head"
# Metrics in the table, in per cent, with their column titles; a set has some of them.
COLUMNS = {
    "miou": "mIoU",
    "pixel_accuracy": "pixel accuracy",
    "top1": "top-1",
    "top5": "top-5",
    **{
        f"{direction}_r{k}": f"{name} R@{k}"
        for direction, name in (("image_to_text", "image to text"), ("text_to_image", "to image"))
        for k in (1, 5, 10)
    },
}


def hash_variables(variables: Params) -> str:
    """Return the SHA-256 of parameters and statistics, equal for every checkpoint format."""
    digest = hashlib.sha256()
    # JAX flattens dictionaries by sorted keys, whatever order a format has.
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        array = np.ascontiguousarray(jax.device_get(leaf))
        # Shape and type as well: the same bytes may be another array.
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def table(benchmarks: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[object]]]:
    """Return header and rows of the results in per cent, without empty columns.

    Args:
      benchmarks: results by row, with `metrics`, `images`, `protocol` and `settings`.
    """
    found = [key for key in COLUMNS if any(key in b["metrics"] for b in benchmarks.values())]
    header = ["benchmark", "protocol", "background", "refinement", "templates", "settings"]
    header += ["images", "measured", *(COLUMNS[key] for key in found)]
    rows: list[list[object]] = []
    for name, entry in benchmarks.items():
        values = [entry["metrics"].get(key) for key in found]
        figures = [float("nan") if value is None else 100 * value for value in values]
        how = [entry["protocol"], *_how(entry), entry["images"], entry.get("measured", "")]
        rows.append([name, *how, *figures])
    return header, rows


def _how(entry: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Return background, refinement, number of templates, and what else differs."""
    protocol = entry.get("settings", {}).get("protocol", {})
    threshold = protocol.get("background_threshold")
    background = "" if threshold is None else f"{threshold}, {protocol['background_rule']}"
    refinement = ""
    if iterations := protocol.get("pamr_iterations"):
        # Earlier versions refined the joined windows, and their results don't say so.
        refinement = f"PAMR x{iterations} per {protocol.get('pamr_place', 'image')}"
    changed = ", ".join(f"{k}={_brief(v)}" for k, v in entry.get("changed", {}).items())
    templates = _prompts(entry)
    count = str(len(templates.get("", ())) or "")
    own = len(templates.keys() - {""})
    return (
        background,
        refinement,
        count + (f", {own} classes with their own" if own else ""),
        changed,
    )


def _brief(value: Any) -> str:
    """Return a setting for a cell of the table."""
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def changed_settings(protocol: Any, usual: Any) -> dict[str, Any]:
    """Return the fields of a protocol that no column of the table shows and that were changed.

    Args:
      protocol: an `eval.protocol.Protocol`.
      usual: the one of that name for the same set and model.
    """
    shown = ("background_threshold", "background_rule", "prompts", "class_prompts")
    return {
        field.name: getattr(protocol, field.name)
        for field in dataclasses.fields(protocol)
        if field.name not in shown and getattr(protocol, field.name) != getattr(usual, field.name)
    }


def _prompts(entry: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    """Return the templates of a result by class, "" being all others; a segment head has none."""
    if entry["protocol"] == SEGMENT_HEAD:
        return {}
    settings = entry.get("settings", {})
    protocol = settings.get("protocol", {})
    given = settings.get("prompts", protocol.get("prompts", ()))
    by_class = dict(given) if isinstance(given, Mapping) else {"": given}
    by_class |= dict(protocol.get("class_prompts", ()))
    return {name: texts for name, texts in by_class.items() if texts}


def markdown(results: Mapping[str, Any]) -> str:
    """Return the table with the checkpoint and settings it belongs to."""
    header, rows = table(results["benchmarks"])
    checkpoint = results["checkpoint"]
    return "\n".join(
        [
            markdown_table(header, [[_cell(value) for value in row] for row in rows]),
            "",
            *(line for notes in remarks(results["benchmarks"]) for line in (*notes, "")),
            f"Figures in per cent. Checkpoint `{checkpoint['path']}`, SHA-256 of its parameters "
            f"`{checkpoint['sha256']}`.",
            "",
        ]
    )


def remarks(benchmarks: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return what the table has no room for: where each set lay, its templates, the best threshold.

    Returns:
      Blocks of lines.
    """
    places = [
        f"{n}: {b['set']['path']}" for n, b in benchmarks.items() if "path" in b.get("set", {})
    ]
    blocks = [places, _templates(benchmarks), _best(benchmarks)]
    return [block for block in blocks if block]


def _templates(benchmarks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each list of templates, with the sets that it served."""
    users: dict[tuple[str, ...], list[str]] = {}
    for name, entry in benchmarks.items():
        for class_, texts in _prompts(entry).items():
            of = f"{name} for {class_!r}" if class_ else name
            users.setdefault(tuple(texts), []).append(of)
    return [f"Templates of {', '.join(sets)}: {' '.join(t)}" for t, sets in users.items()]


def curves(benchmarks: Mapping[str, Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Return mIoU in per cent by background threshold, where several of a set were measured."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, entry in benchmarks.items():
        settings = entry.get("settings", {})
        threshold = settings.get("protocol", {}).get("background_threshold")
        miou = entry["metrics"].get("miou")
        if threshold is None or miou is None:
            continue
        # Points of one curve agree in all but the threshold.
        rest = settings | {"protocol": settings["protocol"] | {"background_threshold": None}}
        key = json.dumps([entry.get("set"), rest], sort_keys=True)
        found.setdefault(key, {}).setdefault(name, []).append((threshold, 100 * miou))
    return {
        next(iter(rows)): sorted(point for points in rows.values() for point in points)
        for rows in found.values()
        if len(rows) > 1
    }


def _best(benchmarks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line about the best of several thresholds."""
    lines = []
    for name, points in curves(benchmarks).items():
        threshold, miou = max(points, key=lambda point: point[1])
        lines.append(
            f"Of {len(points)} background thresholds of {name}, {threshold} gives the best mIoU, "
            f"{miou:.2f}; a threshold chosen on the evaluated set flatters it."
        )
    return lines


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.2f}"
    return str(value)


def write(path: Path, content: str) -> None:
    """Replace a file atomically, so that an interruption never leaves a partial one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(content, encoding="utf-8")
    beside.replace(path)


def read(path: Path) -> dict[str, Any]:
    """Return the results written by `write`; empty if there is no file.

    Raises:
      ValueError: the file doesn't contain results.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}; expected results in JSON") from error
    if not isinstance(found, dict) or "benchmarks" not in found:
        raise ValueError(f"{path}: expected an object with the results of benchmarks")
    return found
