"""Results of an evaluation as JSON and Markdown, with the settings that produced them."""

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
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        array = np.ascontiguousarray(jax.device_get(leaf))
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def table(benchmarks: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[object]]]:
    """Return header and rows of the results in per cent, without empty columns.

    Args:
      benchmarks: results by set, with `metrics`, `images`, `protocol` and `settings`.
    """
    found = [key for key in COLUMNS if any(key in b["metrics"] for b in benchmarks.values())]
    header = ["benchmark", "protocol", "background", "refinement", "templates", "images"]
    header += [COLUMNS[key] for key in found]
    rows: list[list[object]] = []
    for name, entry in benchmarks.items():
        figures = [100 * entry["metrics"].get(key, float("nan")) for key in found]
        how = [entry["protocol"], *_how(entry)]
        rows.append([name, *how, entry["images"], *figures])
    return header, rows


def _how(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return background threshold and rule, refinement, and number of templates of a result."""
    protocol = entry.get("settings", {}).get("protocol", {})
    threshold = protocol.get("background_threshold")
    background = "" if threshold is None else f"{threshold}, {protocol['background_rule']}"
    refinement = ""
    if iterations := protocol.get("pamr_iterations"):
        # Earlier versions refined the joined windows, and their results don't say so.
        refinement = f"PAMR x{iterations} per {protocol.get('pamr_place', 'image')}"
    return background, refinement, str(len(_prompts(entry)) or "")


def _prompts(entry: Mapping[str, Any]) -> Sequence[str]:
    """Return the templates of a result; a segment head has none."""
    settings = entry.get("settings", {})
    of_protocol = settings.get("protocol", {}).get("prompts", ())
    return () if entry["protocol"] == SEGMENT_HEAD else settings.get("prompts", of_protocol)


def markdown(results: Mapping[str, Any]) -> str:
    """Return the table with the checkpoint and settings it belongs to."""
    header, rows = table(results["benchmarks"])
    checkpoint = results["checkpoint"]
    return "\n".join(
        [
            markdown_table(header, [[_cell(value) for value in row] for row in rows]),
            "",
            *_templates(results["benchmarks"]),
            f"Figures in per cent. Checkpoint `{checkpoint['path']}`, SHA-256 of its parameters "
            f"`{checkpoint['sha256']}`.",
            "",
        ]
    )


def _templates(benchmarks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each list of templates, with the sets that it served."""
    users: dict[tuple[str, ...], list[str]] = {}
    for name, entry in benchmarks.items():
        if found := _prompts(entry):
            users.setdefault(tuple(found), []).append(name)
    lines = [f"Templates of {', '.join(sets)}: {' '.join(t)}" for t, sets in users.items()]
    return [*lines, ""] if lines else []


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
