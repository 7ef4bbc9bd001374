from pathlib import Path

import pytest

from groupvit_jax.compare import diagnosis
from groupvit_jax.runs.reading import Run

HEALTHY = {
    "loss": 5.0,
    "gradient_norm": 1.0,
    "groups_in_use/stage_0": 6.0,
    "largest_group/stage_0": 0.4,
    "assignment_entropy/stage_0": 0.3,
    "group_cosine": 0.2,
    "global/temperature": 0.05,
    "global/image_to_text_accuracy": 0.2,
    "validation/miou": 0.4,
    "seconds_per_step": 1.0,
    "input_wait_seconds_per_step": 0.01,
    "text_overflow": 0.0,
}
CONFIG = {"train.batch_size": 4096, "evaluators.validation.kind": "segmentation"}


def run_with(changes=(), last=None, config=None):
    records = [{"step": step, **HEALTHY, **dict(changes)} for step in range(10, 210, 10)]
    records[-1] |= last or {}
    return Run(
        "r", Path("r"), {**CONFIG, **(config or {})}, True, ("", ""), "finished", "", records
    )


def titles(run):
    return [finding.title for finding in diagnosis.findings(run)]


def test_a_healthy_run_has_no_sign():
    assert titles(run_with()) == []
    assert titles(run_with()._replace(records=[])) == []


@pytest.mark.parametrize(
    ("changes", "last", "config", "title", "evidence"),
    [
        ({}, {"loss": None}, {}, "Training is about to diverge, or has", "at step 200"),
        ({}, {"gradient_norm": 11.0}, {}, "Training is about to diverge, or has", "11 at step 200"),
        (
            {"groups_in_use/stage_0": 1.2},
            {},
            {},
            "The grouping has collapsed",
            "groups_in_use/stage_0 1.2 (below 1.5)",
        ),
        ({"largest_group/stage_0": 0.99}, {}, {}, "The grouping has collapsed", "0.99 (over 0.95)"),
        ({"group_cosine": 0.97}, {}, {}, "The grouping has collapsed", "group_cosine 0.97"),
        ({"assignment_entropy/stage_0": 0.95}, {}, {}, "Assignments are undecided", "0.95"),
        ({"global/temperature": 0.01}, {}, {}, "A temperature is at its bound", "least is 0.01"),
        (
            {"global/image_to_text_accuracy": 1 / 4096},
            {},
            {},
            "Images and captions are not told apart",
            "0.000244",
        ),
        (
            {},
            {"validation/miou": 0.3},
            {},
            "An evaluation has fallen since its best",
            "0.4 at step",
        ),
        ({}, {}, {"train.batch_size": 256}, "The batch is small", "256"),
        ({"input_wait_seconds_per_step": 0.3}, {}, {}, "The devices wait for data", "30%"),
        ({"text_overflow": 0.2}, {}, {}, "Prompts are lost", "0.2"),
    ],
)
def test_each_sign_is_found_with_its_evidence(changes, last, config, title, evidence):
    [finding] = diagnosis.findings(run_with(changes, last, config))
    assert finding.title == title
    assert evidence in finding.evidence


def test_every_sign_leads_to_a_section_of_the_page_that_helps():
    page = Path("docs/troubleshooting.md").read_text()
    headings = [line[3:] for line in page.splitlines() if line.startswith("## ")]
    anchors = {
        h.lower().replace(" ", "-").translate({ord(c): None for c in "`,?:."}) for h in headings
    }
    bad = run_with(
        {**HEALTHY, "groups_in_use/stage_0": 1.0, "assignment_entropy/stage_0": 1.0},
        {"validation/miou": 0.1, "loss": None},
        {"train.batch_size": 2},
    )
    sections = {finding.section for finding in diagnosis.findings(bad)}
    assert len(sections) >= 3
    assert sections <= anchors


def test_curves_show_what_was_recorded_and_no_more():
    page = "".join(diagnosis.curves(run_with()))
    for metric in ("groups_in_use/stage_0", "validation/miou", "group_cosine"):
        assert metric in page
    assert "multi_label" not in page
    assert diagnosis.curves(run_with()._replace(records=[])) == []
