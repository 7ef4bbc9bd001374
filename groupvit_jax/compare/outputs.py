"""A comparison as tables: Markdown, CSV and JSON."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from groupvit_jax.compare.groups import Comparison, Group, Score
from groupvit_jax.compare.settings import SEED
from groupvit_jax.compare.verdict import judge, show_p
from groupvit_jax.report.markdown import escape, markdown_table
from groupvit_jax.runs.reading import FINISHED

Rows = list[list[str]]


def group_table(comparison: Comparison) -> tuple[list[str], Rows]:
    """Return header and rows of the groups, the best first, then the unfinished runs."""
    unit = f" {comparison.format.unit}" if comparison.format.unit else ""
    header = ["", *comparison.names, comparison.metric.name + unit, "n", "behind first", "p",
              "best", "at step"]  # fmt: skip
    if comparison.others:
        header.append("state")
    rows = [_group_row(comparison, i, group) for i, group in enumerate(comparison.groups, 1)]
    rows += [_other_row(comparison, score) for score in comparison.others]
    return header, rows


def _group_row(comparison: Comparison, rank: int, group: Group) -> list[str]:
    written = comparison.format
    best = max(group.scores, key=lambda score: comparison.metric.sign * score.best)
    return [
        str(rank), *group.settings, written.spread(group.mean, group.std), str(len(group.values)),
        written.plain(abs(group.behind.value)) if rank > 1 else "", show_p(group.behind.p),
        written.plain(best.best), str(best.best_step), *([FINISHED] if comparison.others else []),
    ]  # fmt: skip


def _other_row(comparison: Comparison, score: Score) -> list[str]:
    value = "" if math.isnan(score.last) else comparison.format.plain(score.last)
    best = [comparison.format.plain(score.best), str(score.best_step)]
    best = best if score.best_step else ["", ""]
    return [
        score.run.name, *score.settings, value, "", "", "", *best,
        describe_state(comparison, score),
    ]  # fmt: skip


def describe_state(comparison: Comparison, score: Score) -> str:
    """Return a run's state with remarks, such as the reason why it isn't compared."""
    run = score.run
    remarks = [run.remark] if run.remark else []
    if score in comparison.others and run.records:
        if not score.last_step:
            remarks.append(f"no {comparison.metric.name}")
        elif math.isnan(score.last):
            remarks.append(f"{comparison.metric.name} not finite")
    return f"{run.state} ({', '.join(remarks)})" if remarks else run.state


def run_table(comparison: Comparison) -> tuple[list[str], Rows]:
    """Return header and rows of every run, in the order of the groups."""
    header = ["run", *comparison.names, SEED, "last", "at step", "best", "at step", "state"]
    rows = []
    for score in all_scores(comparison):
        numbers = []
        for value, step in ((score.last, score.last_step), (score.best, score.best_step)):
            numbers += [comparison.format.plain(value), str(step or "-")]
        state = describe_state(comparison, score)
        rows.append([score.run.name, *score.settings, score.seed, *numbers, state])
    return header, rows


def all_scores(comparison: Comparison) -> list[Score]:
    """Return the runs of the groups, then the others."""
    return [s for group in comparison.groups for s in group.scores] + list(comparison.others)


def effects_table(comparison: Comparison) -> tuple[list[str], Rows]:
    """Return header and rows of the main effects, the largest first."""
    header = ["setting", "means over all else", "largest difference", "p"]
    return header, [
        [
            name,
            "; ".join(
                f"{at.value}: {comparison.format.spread(at.mean, at.error)}" for at in effect.levels
            ),
            comparison.format.plain(effect.range),
            show_p(effect.p),
        ]
        for name, effect in comparison.effects.items()
    ]


def metric_line(comparison: Comparison) -> str:
    """Return a sentence about the metric and its summary statistics, in plain text."""
    metric = comparison.metric
    better = "more" if metric.mode == "max" else "less"
    return (
        f"By the {comparison.by} value of {metric.name} ({metric.why}), {better} is better"
        f"{'; in per cent' if metric.is_share else ''}. "
        f"Mean ± standard deviation over n seeds."
    )


P_LINE = (
    "p: Welch's t against the first; from the third row on corrected for their number (Holm). "
    "Empty: too few seeds, or seeds that make no difference."
)


def markdown(comparison: Comparison) -> str:
    """Return the verdict and the tables as Markdown."""
    parts = [f"**{judge(comparison).text}**", escape(metric_line(comparison))]
    parts += map(escape, comparison.notes)
    parts += [markdown_table(*group_table(comparison)), P_LINE]
    if comparison.effects:
        parts += ["Main effects (± standard error):", markdown_table(*effects_table(comparison))]
    parts += ["Every run:", markdown_table(*run_table(comparison))]
    return "\n\n".join(parts) + "\n"


def csv_text(comparison: Comparison) -> str:
    """Return a CSV row for each run with its group's statistics, in full precision."""
    header = ["run", *comparison.fields, SEED, "state", "last", "last_step", "best", "best_step",
              "rank", "group_mean", "group_std", "group_n"]  # fmt: skip
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    # By identity: scores hold a run's dictionaries and so have no hash.
    ranks = {id(s): (i, g) for i, g in enumerate(comparison.groups, 1) for s in g.scores}
    for score in all_scores(comparison):
        group: Sequence[Any] = ("", "", "", "")
        if id(score) in ranks:
            rank, of = ranks[id(score)]
            group = (rank, of.mean, of.std, len(of.values))
        row = [score.run.name, *score.settings, score.seed, score.run.state, score.last,
               score.last_step, score.best, score.best_step, *group]  # fmt: skip
        writer.writerow(
            "" if isinstance(cell, float) and math.isnan(cell) else cell for cell in row
        )
    return file.getvalue()


def json_text(comparison: Comparison) -> str:
    """Return the whole comparison as JSON; missing values are null."""
    verdict = judge(comparison)
    content = {
        "metric": comparison.metric.name,
        "mode": comparison.metric.mode,
        "by": comparison.by,
        "verdict": {"kind": verdict.kind, "text": verdict.text},
        "notes": list(comparison.notes),
        "settings": list(comparison.fields),
        "groups": [_group_json(comparison, group) for group in comparison.groups],
        "others": [_score_json(comparison, score) for score in comparison.others],
        "main_effects": {
            name: effect._asdict() | {"levels": [level._asdict() for level in effect.levels]}
            for name, effect in comparison.effects.items()
        },
    }
    return json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n"


def _group_json(comparison: Comparison, group: Group) -> dict[str, Any]:
    return {
        "settings": dict(zip(comparison.fields, group.settings, strict=True)),
        "mean": group.mean,
        "std": group.std,
        "n": len(group.values),
        "behind_first": group.behind._asdict(),
        "runs": [_score_json(comparison, score) for score in group.scores],
    }


def _score_json(comparison: Comparison, score: Score) -> dict[str, Any]:
    found = score._asdict()
    settings = dict(zip(comparison.fields, found.pop("settings"), strict=True))
    run = found.pop("run")
    names = {"run": run.name, "folder": str(run.path), "state": run.state, "remark": run.remark}
    return names | {"seed": score.seed, "settings": settings} | found


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
